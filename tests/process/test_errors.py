"""What the user can mend is one clear line, and nothing in it commands the terminal."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Stage

from medserve import errors, terminal
from medserve.job_runner import Step


@pytest.mark.parametrize("number", errors.MENDS)
def test_an_error_of_the_system_is_one_line_with_its_mend(number: int) -> None:
    code = (
        "from medserve import errors\n"
        f"def command():\n    raise OSError({number}, {os.strerror(number)!r}, 'the/file')\n"
        "errors.main(command)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"error: {os.strerror(number)}: the/file; {errors.MENDS[number]}\n"


def test_an_error_of_the_program_keeps_its_traceback() -> None:
    code = f"from medserve import errors\ndef command():\n    raise OSError({errno.EBADF}, 'x')\nerrors.main(command)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "Traceback" in done.stderr


def test_paths_that_cannot_be_are_one_line(stage: Stage, root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "elsewhere")
    lines = {"x" * 300: "File name too long", "file/run": "Not a directory", "run": "Too many levels of symbolic links"}
    for name, line in lines.items():
        done = stage("medserve.cli", "run", "quick", "--out", str(tmp_path / name))
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert done.stderr.startswith(f"error: {line}: {tmp_path}")
    assert not (tmp_path / "elsewhere").exists()


def test_control_characters_do_not_reach_the_terminal(
    stage: Stage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = stage("medserve.cli", "run", str(tmp_path / "\x1b[2J\x9b31mstudy.toml"))
    assert done.returncode == 2
    assert "\\x1b[2J\\x9b31mstudy.toml: no such study file" in done.stderr
    assert done.stderr.rstrip("\n").isprintable()
    terminal.Screen().show(Step("failed", "train", "a", 1, 2, "it said \x1b]0;title\x07", 1.0))
    assert "it said \\x1b]0;title\\x07" in capsys.readouterr().err
