"""Nothing half-written is ever read as whole."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from medserve import store
from medserve.errors import BadInput
from medserve.models import Recipe


def test_json_comes_back_as_it_was(tmp_path: Path) -> None:
    store.write_json(tmp_path / "deep" / "recipe.json", Recipe(epochs=7))
    assert store.read_json(tmp_path / "deep" / "recipe.json", Recipe) == Recipe(epochs=7)
    assert os.listdir(tmp_path / "deep") == ["recipe.json"]


@pytest.mark.parametrize(
    ("content", "line"),
    [(b"", "not a valid Recipe"), (b'{"epochs": 3', "not a valid Recipe"), (b'{"epochs": "3"}', "Expected `int`")],
)
def test_a_bad_manifest_is_named(tmp_path: Path, content: bytes, line: str) -> None:
    path = tmp_path / "recipe.json"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=rf"recipe\.json: .*{line}"):
        store.read_json(path, Recipe)


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nothing\.json: no such file"):
        store.read_json(tmp_path / "nothing.json", Recipe)


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "result"
    with pytest.raises(RuntimeError, match="half way"), store.new_folder(target) as partial:
        (partial / "one").write_text("1")
        assert not target.exists()
        raise RuntimeError("half way")
    assert os.listdir(tmp_path) == []
    with store.new_folder(target) as partial:
        (partial / "one").write_text("1")
    assert os.listdir(tmp_path) == ["result"]
    assert (target / "one").read_text() == "1"


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with store.new_folder(tmp_path / "result") as partial:
            (partial / content).write_text(content)
    assert os.listdir(tmp_path / "result") == ["new"]
    assert os.listdir(tmp_path) == ["result"]


def test_what_a_killed_writer_leaves_is_swept(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, pathlib; from medserve import store\n"
        "with store.new_folder(pathlib.Path(sys.argv[1]) / 'result') as partial:\n"
        "    (partial / 'one').write_text('1'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "result").exists()
    assert len(os.listdir(tmp_path)) == 1
    store.sweep(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_no_half_file(tmp_path: Path) -> None:
    code = (
        "import pathlib, resource, signal, sys; from medserve import errors, store\n"
        # A bound on file size fails a write half way as a full disk does, without filling one.
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "store.write_bytes(pathlib.Path(sys.argv[1]) / 'big', b'x' * 100_000)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode != 0
    assert "File too large" in done.stderr
    assert os.listdir(tmp_path) == []


def test_digests_find_a_changed_a_missing_and_an_outside_file(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model").write_bytes(b"weights")
    (tmp_path / "manifest.json").write_bytes(b"{}")
    files = store.digests(tmp_path, without="manifest.json")
    assert list(files) == ["1/model"]
    store.check_digests(tmp_path, files)
    with pytest.raises(BadInput, match="lies outside"):
        store.check_digests(tmp_path, {"../secret": "0" * 64})
    (tmp_path / "1" / "model").write_bytes(b"Weights")
    with pytest.raises(BadInput, match=r"1/model: its SHA-256 is not the manifest's"):
        store.check_digests(tmp_path, files)
    (tmp_path / "1" / "model").unlink()
    with pytest.raises(BadInput, match=r"1/model: named in the manifest, but missing"):
        store.check_digests(tmp_path, files)


def test_a_sweep_takes_the_writers_own_names_only(tmp_path: Path) -> None:
    """Other programs have names of that kind too, and a link may lead anywhere."""
    elsewhere = tmp_path / "elsewhere"
    kept = [
        *(".any.partial", ".thesis.partial/chapter.tex", "x.12.partial", ".x.12.partial.bak", ".x.12a.partial"),
        *(".12.partial", "other/.x.12.partial", "results/.old.partial/x", "results/a/.x.partial"),
    ]
    for name in [*kept, "results/.x.12.partial/deep/file", "results/a/.0.7.old.partial/file", ".report.html.3.partial"]:
        path = tmp_path / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "run" / "results" / "a" / "0").mkdir()
    (elsewhere / "deep").mkdir(parents=True)
    (elsewhere / "deep" / ".x.12.partial").write_text("mine")
    for link in ("results/link", "results/.link.12.partial", "logs"):
        (tmp_path / "run" / link).symlink_to(elsewhere / "deep")
    store.sweep(tmp_path / "run", ("results", "logs"))
    assert os.listdir(elsewhere / "deep") == [".x.12.partial"]
    files = {str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert files == set(kept)
    assert (tmp_path / "run" / "results" / ".link.12.partial").is_symlink()


def test_a_folder_that_was_moved_aside_comes_back(tmp_path: Path) -> None:
    """Its writer was killed before the new folder had its name."""
    for name in (".a.12.old.partial", ".a.12.partial", ".b.12.old.partial", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    store.sweep(tmp_path)
    assert {path.name: (path / "file").read_text() for path in tmp_path.iterdir()} == {
        "a": ".a.12.old.partial",
        "b": "b",
    }


def test_several_files_appear_together_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"old")
    with pytest.raises(RuntimeError), store.new_files({tmp_path / "one": b"new", tmp_path / "two": b"new"}):
        assert (tmp_path / "one").read_bytes() == b"old"
        raise RuntimeError
    assert os.listdir(tmp_path) == ["one"]
    assert (tmp_path / "one").read_bytes() == b"old"
    with store.new_files({tmp_path / "one": b"new", tmp_path / "two": b"new"}):
        pass
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"one": b"new", "two": b"new"}
