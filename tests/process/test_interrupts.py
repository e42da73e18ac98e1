"""A study that is killed, stopped or resumed: nothing is counted twice, and no process is left."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import Stage
from mini_study import children_of, exports_of, gone, leftovers, mini, results, start, trained, tried

from medserve import store

MOMENTS = [
    pytest.param(1, (2.0, 5.0, 3.0), id="3"),
    pytest.param(4, tuple(np.random.default_rng(5).uniform(0.3, 9.0, 25)), id="25", marks=[pytest.mark.full]),
]


@pytest.mark.parametrize(("launches", "moments"), MOMENTS)
def test_a_study_killed_at_many_moments_resumes_and_counts_nothing_twice(
    launches: int,
    moments: tuple[float, ...],
    stage: Stage,
    checkpoint: Path,
    torchscript: Path,
    onnx: Path,
    tmp_path: Path,
) -> None:
    study, out = mini(tmp_path), tmp_path / "run"
    if launches == 1:
        trained(study, out, checkpoint, torchscript, onnx)
    study.write_text(study.read_text().replace("launches = 1", f"launches = {launches}"))
    tried(out)
    seen: dict[str, str] = {}
    for seconds in moments:
        process = start(study, out)
        time.sleep(seconds)
        # A study may have ended before.
        family = children_of(process) if process.poll() is None else []
        process.kill()
        process.wait()
        assert gone(family), "a child outlived its killed parent"
        now = {name: result.started for name, result in results(out).items()}
        assert seen.items() <= now.items(), "a result was lost, or measured twice"
        seen = now
    done = stage("medserve.cli", "run", str(study), "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["failed"] == 0
    found = results(out)
    assert len(found) == 4 * launches
    assert {result.status for result in found.values()} == {"done"}
    assert seen.items() <= {name: result.started for name, result in found.items()}.items(), "a cell was measured twice"
    for name, result in found.items():
        store.check_digests(out / "results" / name, result.files)
    assert leftovers(out) == []
    again = stage("medserve.cli", "run", str(study), "--out", str(out), "--json")
    kinds = [json.loads(line).get("kind") for line in again.stdout.splitlines()]
    assert set(kinds) <= {"data", None}, "a finished run did something again"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_study_leaves_no_orphan_and_no_half_result(root: Path, tmp_path: Path, number: int) -> None:
    out = tmp_path / "run"
    process = start(mini(tmp_path), out)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not children_of(process):
        time.sleep(0.1)
    time.sleep(1.5)
    family = children_of(process)
    assert family
    process.send_signal(number)
    assert process.wait(30) != 0
    assert gone(family)
    assert leftovers(out) == []


def test_exports_run_side_by_side_and_are_stopped_together(root: Path, checkpoint: Path, tmp_path: Path) -> None:
    study, out = mini(tmp_path), tmp_path / "run"
    trained(study, out, checkpoint)
    process = start(study, out)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(family := exports_of(process)) < 2:
        time.sleep(0.05)
    assert len(family) == 2
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert gone(family)
    assert leftovers(out) == []
    assert not (out / "failures").exists(), "an interrupted export is no failed one"


def test_ctrl_c_of_a_stage_reaches_the_user_as_one_line(root: Path, tmp_path: Path) -> None:
    words = ["run", "--dataset", "synthetic", "--size", "28", "--architecture", "cnn", "--framework", "pytorch"]
    process = subprocess.Popen(
        [sys.executable, "-m", "train", *words, "--out", str(tmp_path / "c")],
        stderr=subprocess.PIPE,
        env={**os.environ},
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline(), "its first line says that it works"
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in text
