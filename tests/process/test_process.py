"""Children end when they should: with what they left behind, at their time limit, and at Ctrl-C."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from mini_study import children_of, gone, mini, tried

from loadtest.results import table
from medserve import matrix, process, run_folder, runner, store, study, study_file
from medserve.errors import BadInput
from medserve.result import Result

PRINTS = """
import ctypes
from medserve import process

puts = ctypes.CDLL(None).puts
puts(b"before")
said = process.printed(lambda: (puts(b"inside"), print("too")))
try:
    process.printed(lambda: 1 / 0)
except ZeroDivisionError:
    puts(b"after")
ctypes.CDLL(None).fflush(None)
print(said.split())
"""

LEFT = """
import subprocess, sys
wait = "import sys, time; time.sleep(float(sys.argv[2])); open(sys.argv[1], 'w').close()"
left = subprocess.Popen([sys.executable, "-c", wait, *sys.argv[1:3]], start_new_session=sys.argv[3] == "session")
print(left.pid)
"""
"""A job that ends at once and leaves a process behind, which holds its standard output for so many seconds."""


def of_study(folder: Path) -> runner._Run:
    made = study_file.read(str(mini(folder)))
    return runner._Run(made, matrix.plan(made), folder / "run", lambda step: None)


@pytest.mark.parametrize("where", ["group", "session"])
def test_a_job_ends_although_what_it_left_holds_its_pipe(tmp_path: Path, where: str) -> None:
    waited, said = tmp_path / "waited", []
    reason = of_study(tmp_path)._jobs.run("data", "x", ["-c", LEFT, str(waited), "60", where], said=said)
    assert reason is None
    assert not waited.exists(), "the runner waited for a process that was not its own"
    left = int(b"".join(said))
    if where == "group":
        assert not psutil.pid_exists(left) or gone([psutil.Process(left)])
    else:
        os.kill(left, signal.SIGKILL)


@pytest.mark.parametrize("wakes", [True, False], ids=["woken", "looking"])
def test_what_a_child_prints_last_is_read(wakes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the system cannot tell of a child's end, and it is looked for."""
    if not wakes:
        monkeypatch.setattr(process, "_end_of", lambda child: None)
    code = "import os, sys; os.write(1, b'{}\\n' * 20_000 + b'end'); os.close(1); sys.stderr.write('late')"
    child = process.start(["-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    with child.stdout:
        assert list(process.output(child, study.MOST_HOURS * 3600)) == [b"{}\n"] * 20_000 + [b"end"]
    assert child.wait() == 0


def test_what_a_library_prints_is_read_and_what_comes_after_is_shown() -> None:
    done = subprocess.run([sys.executable, "-c", PRINTS], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["before", "after", "['inside', 'too']"]


def test_a_stopped_child_takes_its_group_along() -> None:
    code = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    child = process.start(["-c", code], stdout=subprocess.PIPE)
    assert child.stdout is not None
    with child.stdout:
        left = psutil.Process(int(child.stdout.readline()))
        assert process.stop(child) == 7
        assert gone([left])


def test_a_job_above_its_time_limit_is_a_failed_row(root: Path, tmp_path: Path) -> None:
    path, out = mini(tmp_path, null="false", profiles='["in-process-1"]'), tmp_path / "run"
    tried(out)
    text = path.read_text()
    path.write_text(text.replace("launches = 1", "launches = 1\njob_hours = 1e-9"))
    assert runner.run(study_file.read(str(path)), out, lambda step: None) == 1
    rows = table.rows(table.read(out))
    assert {row.status for row in rows} == {"failed"}
    assert all(
        str(row.reason).endswith("ended after 1e-09 h, the time limit; raise 'job_hours' in the study") for row in rows
    )
    path.write_text(text.replace('"in-process-1"', '"closed-1"'))
    changed = study_file.read(str(path))
    run_folder.check(changed, out)  # what came to nothing may change
    cell = matrix.plan(store.read_json(out / "study.json", study.Study)).deployed[0].cells[0]
    measured = Result(study="mini", cell=cell, launch=0, status="done", started="2026-11-20T08:00:00+00:00")
    (out / "results" / cell.name / "0").mkdir(parents=True)
    store.write_json(out / "results" / cell.name / "0" / "result.json", measured)
    with pytest.raises(BadInput, match="another 'measure', 'job_hours', in which .*in-process-1 is measured otherwise"):
        run_folder.check(changed, out)


def test_ctrl_c_at_a_terminal_ends_a_study_with_all_its_processes(root: Path, tmp_path: Path) -> None:
    """The terminal tells the process in front alone."""
    keyboard, terminal = os.openpty()
    words = [sys.executable, "-m", "medserve.cli", "run", str(mini(tmp_path)), "--out", str(tmp_path / "run"), "--json"]
    code = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    with (tmp_path / "log").open("wb") as log:
        study_run = subprocess.Popen(
            [sys.executable, "-c", code, *words], stdin=terminal, stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and (not (tmp_path / "log").stat().st_size or not children_of(study_run)):
            time.sleep(0.05)
        family = children_of(study_run)
        assert family
        os.write(keyboard, b"\x03")
        assert study_run.wait(60) == 130
        assert gone(family)
        again = f"medserve run {tmp_path / 'mini.toml'} --out {tmp_path / 'run'} goes on"
        assert (tmp_path / "log").read_text().endswith(f"error: interrupted; what is measured is kept: {again}\n")
    finally:
        process.stop(study_run)
        os.close(keyboard)
        os.close(terminal)
