"""A disk that is full, fails, or is cut off at any operation: nothing is lost, and nothing half-written is read."""

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import disk_faults
import made_run
import pytest
from conftest import Stage
from disk_faults import FAULTS, Disk, Fault, attempt, check_order
from test_runner import leftovers, mini

from loadtest.analysis import verify
from loadtest.report import page
from medserve import store, study
from medserve.empty import empty_artifact
from medserve.result import Result, SelfTest
from medserve.spec import Recipe

OLD, NEW = 3, 7


def every(
    tmp_path: Path, begin: Callable[[Path], None], write: Callable[[Path], object], fault: Fault, exchange: bool = True
) -> Iterator[tuple[Path, str]]:
    """The folder after `begin`, and after `write` with the fault at its first, second, ... last operation."""
    for number in itertools.count(1):
        folder = tmp_path / str(number)
        folder.mkdir()
        begin(folder)
        ended = attempt(lambda: write(folder), Disk(folder, fault, number), exchange)  # noqa: B023 (run at once)
        yield folder, ended
        if ended == "done":
            return
        shutil.rmtree(folder)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def write_manifest(epochs: int, folder: Path) -> None:
    store.write_json(folder / "deep" / "recipe.json", Recipe(epochs=epochs))


def write_folder(seconds: float, folder: Path) -> None:
    """Files, a folder in it, and a manifest with their digests, as all stages write them."""
    with store.new_folder(folder / "deep" / "made") as partial:
        (partial / "model").write_bytes(b"weights" * round(seconds))
        (partial / "1").mkdir()
        (partial / "1" / "more").write_text(str(seconds))
        files = store.digests(partial, without="selftest.json")
        held = SelfTest(started="", seconds=seconds, roofline={}, checks=(), files=files)
        store.write_json(partial / "selftest.json", held)


def read_folder(folder: Path) -> float:
    """What `write_folder` was told; it raises when anything is missing or differs."""
    made = store.read_json(folder / "deep" / "made" / "selftest.json", SelfTest)
    store.check_digests(folder / "deep" / "made", made.files)
    assert set(made.files) == {"model", "1/more"}
    return made.seconds


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("before", [None, OLD])
def test_a_manifest_is_the_old_or_the_new_one(tmp_path: Path, before: int | None, fault: Fault) -> None:
    def begin(folder: Path) -> None:
        if before is not None:
            write_manifest(before, folder)

    ends = []
    for folder, ended in every(tmp_path, begin, lambda folder: write_manifest(NEW, folder), fault):
        path = folder / "deep" / "recipe.json"
        found = store.read_json(path, Recipe).epochs if path.exists() else None
        assert found in (before, NEW)
        assert ended != "done" or found == NEW
        assert ended == "killed" or fault == "error" or leftovers(folder) == []
        store.sweep(folder)
        assert leftovers(folder) == []
        assert (store.read_json(path, Recipe).epochs if path.exists() else None) == found
        write_manifest(NEW, folder)
        assert names(folder / "deep") == ["recipe.json"]
        ends.append(ended)
    assert len(ends) > 5
    assert set(ends) == {"killed" if fault == "kill" else "failed", "done"}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
@pytest.mark.parametrize("before", [None, OLD])
def test_a_folder_is_the_old_or_the_new_one(tmp_path: Path, before: int | None, exchange: bool, fault: Fault) -> None:
    def begin(folder: Path) -> None:
        if before is not None:
            write_folder(before, folder)

    ends = []
    for folder, ended in every(tmp_path, begin, lambda folder: write_folder(NEW, folder), fault, exchange):
        if exchange and before is not None:
            assert read_folder(folder) in (before, NEW)
        store.sweep(folder)
        assert leftovers(folder) == []
        found = read_folder(folder) if (folder / "deep" / "made").exists() else None
        assert found in (before, NEW)
        assert ended != "done" or found == NEW
        write_folder(NEW, folder)
        assert read_folder(folder) == NEW
        assert names(folder / "deep") == ["made"]
        ends.append(ended)
    assert len(ends) > 20
    assert ends[-1] == "done"
    assert ("killed" if fault == "kill" else "failed") in ends


@pytest.mark.parametrize("fault", FAULTS)
def test_a_sweep_that_is_cut_off_loses_nothing(tmp_path: Path, fault: Fault) -> None:
    def begin(folder: Path) -> None:
        write_folder(OLD, folder)
        (folder / "deep" / "made").rename(folder / "deep" / ".made.123.old.partial")
        shutil.copytree(folder / "deep" / ".made.123.old.partial", folder / "deep" / ".made.123.partial")

    for folder, _ in every(tmp_path, begin, store.sweep, fault):
        store.sweep(folder)
        assert read_folder(folder) == OLD
        assert names(folder / "deep") == ["made"]


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
@pytest.mark.parametrize("write", [write_manifest, write_folder])
def test_all_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, write: Callable[[float, Path], None], exchange: bool
) -> None:
    folder, record = tmp_path / "disk", tmp_path / "record.json"
    folder.mkdir()
    write(OLD, folder)

    def both() -> None:
        write(NEW, folder / "new")
        write(NEW, folder)

    assert attempt(both, Disk(folder), exchange, record) == "done"
    done = json.loads(record.read_bytes())
    assert {"open", "fsync", "rename" if write is write_folder else "replace"} <= {kind for kind, *_ in done}
    check_order(done)
