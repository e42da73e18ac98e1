"""A study as its user runs it: real processes, killed and resumed, with failures that become rows."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import Stage

from medserve import runner, store
from medserve import study as studies
from medserve.result import Check, Result, SelfTest

MINI = """
name = "mini"
title = "Mini"
datasets = ["{dataset}"]
sizes = [28]
architectures = ["cnn"]
frameworks = ["pytorch"]
formats = ["native", "onnx"]
runtimes = {runtimes}
launches = 1
null = {null}

[recipe]
epochs = 1

[[measure]]
profiles = {profiles}
seconds = 0.5
warmup_seconds = 0.1
"""


def mini(
    folder: Path,
    dataset: str = "synthetic",
    runtimes: str = '["onnx_runtime"]',
    null: str = "true",
    profiles: str = '["in-process-1", "closed-1"]',
) -> Path:
    path = folder / "mini.toml"
    path.write_text(MINI.format(dataset=dataset, runtimes=runtimes, null=null, profiles=profiles))
    return path


def tried(out: Path, **other: Any) -> SelfTest:
    """A self-test that held, so that a study need not make its own."""
    held = {"started": "2026-11-20T08:00:00+00:00", "seconds": 20.0, "roofline": {28: 9000.0}, "checks": ()}
    made = SelfTest(**{**held, **other})
    store.write_json(out / "selftest" / "selftest.json", made)
    return made


def trained(study: Path, out: Path, *folders: Path) -> None:
    """Begin a run with a finished checkpoint and artifacts, under the names of its own jobs."""
    store.write_json(out / "study.json", studies.read(str(study)))
    for folder in folders:
        kind = "checkpoints" if (folder / "checkpoint.json").is_file() else "artifacts"
        shutil.copytree(folder, out / kind / folder.name.replace("-float32", ""))


def kinds(stdout: str) -> list[str]:
    """What was done, in order, by the steps that a run told."""
    steps = [json.loads(line) for line in stdout.splitlines()]
    return [step["kind"] for step in steps if step["state"] in ("done", "failed")]


def start(study: Path, out: Path) -> "subprocess.Popen[bytes]":
    words = [sys.executable, "-m", "medserve.cli", "run", str(study), "--out", str(out), "--json"]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def results(out: Path) -> dict[str, Result]:
    """By cell and launch."""
    paths = out.glob("results/*/[0-9]*/result.json")
    return {str(path.parent.relative_to(out / "results")): store.read_json(path, Result) for path in paths}


def leftovers(out: Path) -> list[str]:
    return [str(path) for path in out.rglob(".*.partial")]


def children_of(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def exports_of(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children():
        with suppress(psutil.Error):
            found += [child] if "export" in child.cmdline() else []
    return found


def gone(processes: list[psutil.Process], patience: float = 15.0) -> bool:
    _, alive = psutil.wait_procs(processes, patience)
    return not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


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


def test_the_self_test_runs_once_and_what_the_generator_cannot_carry_is_refused(
    stage: Stage, checkpoint: Path, torchscript: Path, onnx: Path, tmp_path: Path
) -> None:
    study, out = mini(tmp_path, profiles='["closed-1", "open-50"]'), tmp_path / "run"
    words = ("medserve.cli", "run", str(study))
    trained(study, out, checkpoint, torchscript, onnx)
    first = stage(*words, "--out", str(out), "--json")
    found = store.read_json(out / "selftest" / "selftest.json", SelfTest)
    done = kinds(first.stdout)
    assert done.count("selftest") == 1
    assert done.index("selftest") < done.index("http")
    # Whether its checks hold, and which rate it reaches, is the machine's affair; the study goes on, and says so.
    slow = {name for name in results(out) if found.roofline[28] * 0.7 < 500 and "open-500" in name}
    assert {name for name, result in results(out).items() if result.status != "done"} == slow
    assert len(results(out)) == 4
    assert first.returncode == (1 if found.failed or slow else 0)

    refused = next(name for name in results(out) if name.endswith("null.cpu-t1.open-50/0"))
    shutil.rmtree(out / "results" / refused)
    tried(out, roofline={28: 71.0})
    again = stage(*words, "--out", str(out), "--json")
    assert set(kinds(again.stdout)) <= {"data"}, "neither the self-test nor the cell is repeated"
    assert again.returncode == 1
    assert results(out)[refused].reason == (
        "50 requests a second are more than 70 % of the 71 that the load generator reaches here at 28 px; "
        "take a profile of a lower rate, or faster cores"
    )

    false = Check(name="stall: p99 at 100/s", measured=4.0, truth=900.0, limit=450.0, unit="ms", ok=False)
    tried(out, checks=(false,))
    third = stage(*words, "--out", str(out), "--json")
    assert third.returncode == 1, "a failed self-test is a failed job, also where it was made before"
    assert json.loads(third.stdout.splitlines()[-1])["failed"] == 1
    failure = json.loads((out / "failures" / "selftest-selftest.json").read_bytes())
    assert "load-generator self-test failed: stall: p99 at 100/s; remove " in failure["reason"]


def test_a_mistake_on_purpose_has_a_process_of_its_own(
    stage: Stage, checkpoint: Path, torchscript: Path, onnx: Path, tmp_path: Path
) -> None:
    names = ("in-process-1", "closed-1", "closed-1-json", "in-process-1-one-image", "in-process-1-compile-inside")
    study = mini(tmp_path, null="false", profiles=json.dumps([*names, "in-process-1-default-threads"]))
    out = tmp_path / "run"
    trained(study, out, checkpoint, torchscript, onnx)
    tried(out)
    done = stage("medserve.cli", "run", str(study), "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    told = kinds(done.stdout)
    assert told[told.index("in-process") :] == ["in-process", "http", "mistake", "cold", "mistake"]
    assert len(results(out)) == 6
    rows = json.loads(stage("loadtest", "results", str(out), "--format", "json").stdout)
    assert {row["profile"]: row["trap"] for row in rows if row["trap"]} == {
        "closed-1-json": "json",
        "in-process-1-one-image": "one-image",
        "in-process-1-compile-inside": "compile-inside",
        "in-process-1-default-threads": "default-threads",
    }
    assert {row["threads"] for row in rows if row["trap"] == "default-threads"} == {0}


def test_what_cannot_be_trained_is_a_row_with_a_reason(stage: Stage, root: Path, tmp_path: Path) -> None:
    """The data set is not there and cannot be fetched without network."""
    out = tmp_path / "run"
    done = stage("medserve.cli", "run", str(mini(tmp_path, dataset="pathmnist")), "--out", str(out))
    assert done.returncode == 1
    rows = json.loads(stage("loadtest", "results", str(out), "--format", "json").stdout)
    assert {row["status"] for row in rows} == {"failed"}
    assert len(rows) == 4
    assert all("pathmnist.npz" in row["reason"] for row in rows)


def test_a_folder_holds_one_study(stage: Stage, root: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    stage("medserve.cli", "run", str(mini(tmp_path, dataset="pathmnist")), "--out", str(out))
    done = stage("medserve.cli", "run", str(mini(tmp_path, dataset="dermamnist")), "--out", str(out))
    assert done.returncode == 2
    assert "holds a run of this study with another 'datasets'; give another --out" in done.stderr


def test_a_folder_of_something_else_is_refused_and_left_as_it_is(stage: Stage, root: Path, tmp_path: Path) -> None:
    study, another, empty = mini(tmp_path), tmp_path / "another", tmp_path / "empty"
    others = [".cache/.any.partial", ".thesis.partial/chapter.tex", "results/.x.12.partial", ".x.12.partial/file"]
    for folder in (tmp_path / "thesis", another):
        for name in others:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(name)
    (another / "study.json").write_text(MINI)
    (tmp_path / "selftest" / "selftest").mkdir(parents=True)
    (tmp_path / "file").write_text("mine")
    lines = {
        "thesis": "holds '.cache' and is no run; give another --out, or an empty folder",
        "another": "study.json: not a valid Study",
        "selftest": "holds 'selftest' and is no run",
        "file": "is a file; give another --out",
    }
    before = sorted(tmp_path.rglob("*"))
    for name, line in lines.items():
        done = stage("medserve.cli", "run", str(study), "--out", str(tmp_path / name))
        assert done.returncode == 2
        assert line in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert sorted(tmp_path.rglob("*")) == before
    # What a run leaves that was killed before it had written its study is no obstacle.
    empty.mkdir()
    (empty / ".study.json.12.partial").write_text("{")
    (empty / ".lock").touch()
    runner._check_folder(studies.read(str(study)), empty)


def test_the_lock_belongs_to_its_owner(tmp_path: Path) -> None:
    """Whoever can open it can hold it."""
    before = os.umask(0)
    try:
        with runner._locked(tmp_path / "run"):
            assert stat.S_IMODE((tmp_path / "run" / ".lock").stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_two_runs_do_not_share_a_folder(stage: Stage, root: Path, tmp_path: Path) -> None:
    study, out = mini(tmp_path), tmp_path / "run"
    first = start(study, out)
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not (out / "study.json").is_file():
            time.sleep(0.05)
        second = stage("medserve.cli", "run", str(study), "--out", str(out))
        assert second.returncode == 2
        assert "another run works in this folder" in second.stderr
    finally:
        first.terminate()
        first.wait(30)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["run", "slow"], "error: unknown study 'slow'; there is: "),
        (["run", "missing.toml"], "error: missing.toml: no such study file"),
        (["train", "--dataset", "synthetic", "--out", "a b"], "error: checkpoint 'a b': cannot be part of a path"),
        (["export", "nowhere", "--format", "onnx", "--out", ".."], "error: artifact '..': cannot be part of a path"),
        (["train", "--dataset", "x", "--size", "28", "--framework", "pytorch", "--out", "o"], "unknown dataset 'x'"),
        (["serve", "nowhere"], "nowhere"),
        (["results", "nowhere"], "nowhere"),
    ],
)
def test_bad_words_are_one_line_and_exit_code_2(stage: Stage, words: list[str], line: str) -> None:
    done = stage("medserve.cli", *words)
    assert done.returncode == 2
    assert line in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [[], ["run"], ["list"], ["data"], ["train"], ["export"], ["serve"], ["load"], ["selftest"], ["time"], ["results"]],
)
def test_every_command_explains_itself(stage: Stage, words: list[str]) -> None:
    done = stage("medserve.cli", *words, "--help", COLUMNS="200")
    assert done.returncode == 0
    assert "Usage" in done.stdout


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
