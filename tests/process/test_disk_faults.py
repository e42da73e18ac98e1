"""A disk that is full, fails, or is cut off at any operation: nothing is lost, and nothing half-written is read."""

import itertools
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import disk_faults
import made_run
import pytest
from conftest import Stage
from disk_faults import FAULTS, Disk, Fault, attempt, check_order
from mini_study import leftovers

from loadtest.report import page
from loadtest.results import verify
from medserve import matrix, runner, store, study, study_file
from medserve.empty import empty_artifact
from medserve.jobs import Failure
from medserve.models import Recipe
from medserve.result import Result, SelfTest

OLD, NEW = 3, 7


def every(
    tmp_path: Path,
    begin: Callable[[Path], object],
    write: Callable[[Path], object],
    fault: Fault,
    exchange: bool = True,
    step: int = 1,
) -> Iterator[tuple[Path, str]]:
    """The folder after `begin`, and after `write` with the fault at its first, second, ... last operation."""
    for number in itertools.count(1, step):
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
    assert len(ends) > 4
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
    assert len(ends) > 12
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


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one cell, and its report."""
    run = tmp_path_factory.mktemp("reported") / "run"
    measure = (study.Measure(profiles=("in-process-1",)),)
    made = made_run.study(
        sizes=(28,), frameworks=("pytorch",), formats=("native",), launches=1, null=False, measure=measure
    )
    made_run.build(run, made, lambda deployed, cell, launch: 1.0, count=200)
    page.write(run)
    return run


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("step", [13, pytest.param(1, marks=[pytest.mark.full])], ids=["some", "all"])
def test_a_report_is_the_old_or_the_new_one(reported: Path, tmp_path: Path, fault: Fault, step: int) -> None:
    old = {path.relative_to(reported): content for path, content in page.files(reported).items()}
    new = {path: content + b"new" for path, content in old.items()}

    def publish(run: Path) -> None:
        page.publish(run, {run / path: content for path, content in new.items()})

    def sums(run: Path) -> dict[str, str]:
        lines = (run / verify.SUMS).read_text().splitlines()
        return {name: digest for digest, name in (line.split("  ") for line in lines)}

    ends = []
    for run, ended in every(
        tmp_path, lambda run: shutil.copytree(reported, run, dirs_exist_ok=True), publish, fault, step=step
    ):
        store.sweep(run)
        assert leftovers(run) == []
        found = {path: (run / path).read_bytes() for path in old}
        assert all(content in (old[path], new[path]) for path, content in found.items())
        if (run / verify.SUMS).exists():
            store.check_digests(run, sums(run))
            assert found in (old, new)
        else:
            assert ended != "done"
        publish(run)
        store.check_digests(run, sums(run))
        assert {path: (run / path).read_bytes() for path in new} == new
        ends.append(ended)
    assert len(ends) > 100 / step
    assert ends[-1] == "done"


MINI = """
name = "mini"
title = "Mini"
datasets = ["synthetic"]
sizes = [28]
architectures = ["cnn"]
frameworks = ["pytorch"]
formats = ["native"]
runtimes = ["null"]
launches = 1

[[measure]]
profiles = ["in-process-1"]
seconds = 0.1
warmup_seconds = 0.05
requests = 0
"""
PROCESSES = {"runner": "medserve.cli run", "launch": "loadtest launch"}
SOME = [("runner", "kill", 5), ("runner", "full", 9), ("launch", "error", 6), ("launch", "full", 12)]


def prepared(folder: Path) -> tuple[Path, Path]:
    """The file of a study of the null runtime, and its run up to the measuring."""
    path, out = folder / "mini.toml", folder / "run"
    path.write_text(MINI)
    made = study_file.read(str(path))
    plan = matrix.plan(made)
    (training,), (export,) = plan.trainings, plan.exports
    store.write_json(out / "study.json", made)
    checkpoint = made_run.checkpoint_of(training, unofficial=False, accuracy=0.9)
    store.write_json(out / "checkpoints" / training.name / "checkpoint.json", checkpoint)
    empty_artifact(out / "artifacts" / export.name, 28)
    return path, out


def one_fault(folder: Path, stage: Stage, process: str, fault: Fault, number: int) -> bool:
    """Run a study with a fault in one of its processes, look at what is there, run it again. Was the fault reached?"""
    folder.mkdir()
    path, out = prepared(folder)
    run = ("medserve.cli", "run", str(path), "--out", str(out), "--json")
    reached = folder / "reached"
    env = disk_faults.environment(fault, number, out, reached, PROCESSES[process], folder / "site")
    cut = stage(*run, **env)
    assert "Traceback" not in cut.stderr, cut.stderr
    assert store.read_json(out / "study.json", study.Study).name == "mini"
    before = results(out)
    assert cut.returncode in (0, 1, -signal.SIGKILL)
    assert cut.returncode != 0 or {result.status for result in before.values()} == {"done"}
    again = stage(*run)
    assert again.returncode == 0, again.stderr
    assert leftovers(out) == []
    (after,) = results(out).items()
    assert after[1].status == "done"
    name = after[0]
    assert name not in before or before[name].status == "failed" or before[name].started == after[1].started
    return reached.exists()


def results(out: Path) -> dict[str, Result]:
    """Those of a run by cell and launch; each is whole."""
    found = {}
    for path in out.glob("results/*/[0-9]*"):
        found[str(path)] = result = store.read_json(path / "result.json", Result)
        store.check_digests(path, result.files)
    return found


@pytest.mark.parametrize(("process", "fault", "number"), SOME)
def test_a_study_goes_on_after_a_fault(
    process: str, fault: Fault, number: int, root: Path, stage: Stage, tmp_path: Path
) -> None:
    assert one_fault(tmp_path / "study", stage, process, fault, number), "the process made fewer operations"


@pytest.mark.full
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_study_goes_on_after_a_fault_at_many_operations(
    process: str, fault: Fault, root: Path, stage: Stage, tmp_path: Path
) -> None:
    """Each kind of fault begins at another operation, so that together they meet all."""
    for number in itertools.count(1 + FAULTS.index(fault), len(FAULTS)):
        if not one_fault(tmp_path / str(number), stage, process, fault, number):
            break
    assert number > 5


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("step", [6, pytest.param(1, marks=[pytest.mark.full])], ids=["some", "all"])
def test_a_study_begins_again_after_a_fault(root: Path, tmp_path: Path, fault: Fault, step: int) -> None:
    """Its data set is not there: all that is written are its own manifests and the reason."""
    (tmp_path / "mini.toml").write_text(MINI.replace("synthetic", "pathmnist"))
    made = study_file.read(str(tmp_path / "mini.toml"))

    def run(folder: Path) -> int:
        return runner.run(made, folder / "run", lambda step: None)

    count = 0
    for folder, _ in every(tmp_path, lambda folder: None, run, fault, step=step):
        path = folder / "run" / "study.json"
        assert not path.exists() or store.read_json(path, study.Study) == made
        assert run(folder) == 1
        assert store.read_json(path, study.Study) == made
        (failure,) = (folder / "run" / "failures").iterdir()
        assert "pathmnist.npz: no such file" in store.read_json(failure, Failure).reason
        assert leftovers(folder) == []
        count += 1
    assert count > 10 / step
