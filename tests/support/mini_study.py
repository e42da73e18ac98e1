"""A study of one network that runs in seconds, as its user runs it, and what it leaves."""

import json
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from medserve import store, study_file
from medserve.result import Peaks, Result, SelfTest

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
requests = 0
"""


PEAKS = Peaks(threads=1, cpus=(0,), flops=1e11, bandwidth={2**28: 1e10})


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
    """Begin a run with a finished checkpoint and artifacts, under the names of its own jobs, and its peaks."""
    store.write_json(out / "study.json", study_file.read(str(study)))
    store.write_json(out / "peaks" / "1.json", PEAKS)
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
