"""What many tests share: a data root of their own, one small checkpoint, its artifacts."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Stage = Callable[..., "subprocess.CompletedProcess[str]"]


def run_stage(*words: str, **env: str) -> "subprocess.CompletedProcess[str]":
    """Run `python -m WORDS` to its end; what it printed is text."""
    return subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, env={**os.environ, **env}, timeout=300
    )


def check_stage(*words: str, **env: str) -> "subprocess.CompletedProcess[str]":
    done = run_stage(*words, **env)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="session", autouse=True)
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where data sets lie during the tests; never the user's own folder."""
    folder = tmp_path_factory.mktemp("medmnist")
    os.environ["MEDMNIST_ROOT"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def stage() -> Stage:
    return run_stage


@pytest.fixture(scope="session")
def checkpoint(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PyTorch checkpoint of one epoch on synthetic images at 28 px."""
    folder = tmp_path_factory.mktemp("checkpoints") / "synthetic-28-cnn-pytorch-s0"
    words = ["--dataset", "synthetic", "--size", "28", "--architecture", "cnn", "--framework", "pytorch"]
    check_stage("train", "run", *words, "--set", "epochs=1", "--out", str(folder))
    return folder


def _artifact(checkpoint: Path, form: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts") / f"{checkpoint.name}.{form}"
    check_stage("export", str(checkpoint), "--format", form, "--out", str(folder))
    return folder


@pytest.fixture(scope="session")
def torchscript(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _artifact(checkpoint, "torchscript", tmp_path_factory)


@pytest.fixture(scope="session")
def onnx(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _artifact(checkpoint, "onnx", tmp_path_factory)
