"""Fixtures of many tests: a data root of their own, one small checkpoint per framework, and its artifacts."""

import fcntl
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray

from medserve import machine, plugins
from medserve.empty import empty_artifact
from medserve.tables import FORMATS

# A shell ignores SIGINT in what it starts in the background, and so would every process that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Timing never decides a test, and a busy machine makes any example slow. The same examples in each run: a change is
# judged by what it changes; `make search` draws others.
settings.register_profile(
    "medserve", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True, database=None
)
settings.register_profile("search", settings.get_profile("medserve"), derandomize=False, max_examples=2000)
settings.load_profile("medserve")

# The images are small: more threads mostly wait for one another, which costs CPU time beside other work. What the
# program starts with another number of threads, it starts with variables of its own.
os.environ |= {name: value for name, value in machine.thread_environment(1).items() if name.endswith("_THREADS")}

# The same small networks are compiled in many processes of a run: the second one reads what the first one compiled.
XLA_CACHE = os.environ.get("JAX_COMPILATION_CACHE_DIR") or tempfile.mkdtemp(prefix="medserve-xla-")
os.environ |= {
    "JAX_COMPILATION_CACHE_DIR": XLA_CACHE,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}

Stage = Callable[..., "subprocess.CompletedProcess[str]"]


def run_stage(*words: str, **env: str) -> "subprocess.CompletedProcess[str]":
    """Run `python -m WORDS` to its end; what it printed is text."""
    return subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, env={**os.environ, **env}, timeout=900
    )


def check_stage(*words: str, **env: str) -> "subprocess.CompletedProcess[str]":
    done = run_stage(*words, **env)
    assert done.returncode == 0, done.stderr
    return done


# Files that take longest, first, so that two processes end together (`--no-loadscope-reorder`).
LONGEST = (
    "networks",
    "export",
    "transfer",
    "runtimes",
    "frameworks",
    "interrupts",
    "runner",
    "load_command",
    "load",
    "golden",
)


def pytest_unconfigure(config: pytest.Config) -> None:
    # Each process of a parallel run has this cache; the one that began it ends last.
    if not hasattr(config, "workerinput") and Path(XLA_CACHE).name.startswith("medserve-xla-"):
        shutil.rmtree(XLA_CACHE, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {f"test_{name}": rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of a parallel run (pytest-xdist) share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time make `path`."""
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session", autouse=True)
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where data sets lie during the tests; never the user's own folder."""
    folder = tmp_path_factory.mktemp("medmnist")
    os.environ["MEDMNIST_ROOT"] = str(folder)
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for images of one's own, whose data sets are made in no other test's."""
    monkeypatch.setenv("MEDMNIST_ROOT", str(tmp_path / "root"))
    return tmp_path


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let what this process starts share what XLA compiles: many of its children compile the same functions."""
    # Not shared between the processes of a parallel run, for JAX writes its files in place.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path_factory.mktemp("jax"))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


@pytest.fixture(scope="session")
def extent(request: pytest.FixtureRequest) -> str:
    """What the jobs of one framework compute: the `whole` where pytest has collected a test of `make test-full`."""
    return "whole" if any(item.get_closest_marker("full") for item in request.session.items) else "brief"


@pytest.fixture(scope="session")
def stage() -> Stage:
    return run_stage


Checkpoints = Callable[[str], Path]
Artifacts = Callable[..., Path]


@pytest.fixture(scope="session")
def checkpoint_of(root: Path, shared: Path) -> Checkpoints:
    """`checkpoint_of(framework)`: a checkpoint of one epoch on synthetic images at 28 px, made once."""
    folder = shared / "checkpoints"
    folder.mkdir(exist_ok=True)

    @functools.cache
    def make(framework: str) -> Path:
        _need("train.frameworks", framework)
        out = folder / f"synthetic-28-cnn-{framework}-s0"
        words = ["--dataset", "synthetic", "--size", "28", "--architecture", "cnn", "--framework", framework]
        with locked(out):
            if not (out / "checkpoint.json").is_file():
                check_stage("train", "run", *words, "--set", "epochs=1", "--out", str(out))
        return out

    return make


@pytest.fixture(scope="session")
def artifact_of(checkpoint_of: Checkpoints, shared: Path) -> Artifacts:
    """`artifact_of(framework, format, precision)`: that checkpoint exported and certified, made once."""
    folder = shared / "artifacts"
    folder.mkdir(exist_ok=True)

    @functools.cache
    def make(framework: str, form: str, precision: str = "float32") -> Path:
        _need("export.frameworks", framework)
        if reason := why_not(FORMATS[form].runtime):
            pytest.skip(reason)
        checkpoint = checkpoint_of(framework)
        out = folder / f"{checkpoint.name}.{form}-{precision}"
        words = [word for name in readers(form) for word in ("--runtime", name)]
        words += ["--format", form, "--precision", precision]
        with locked(out):
            if not (out / "artifact.json").is_file():
                check_stage("export", str(checkpoint), *words, "--out", str(out))
        return out

    return make


def readers(form: str) -> list[str]:
    """The runtimes that read a format and are installed."""
    names = plugins.names("serve.runtimes")
    return [name for name in names if form in plugins.literals("serve.runtimes", name)["READS"] and not why_not(name)]


def why_not(name: str) -> str | None:
    """Why a runtime cannot be tried here, null where it can."""
    if absent := plugins.missing("serve.runtimes", name):
        return f"{name} needs {', '.join(absent)}, which is not installed"
    said = plugins.literals("serve.runtimes", name)
    if absent := [program for program in said.get("PROGRAMS", ()) if shutil.which(program) is None]:
        return f"{name} needs {', '.join(absent)}, which is not on the path"
    if "cpu" not in said.get("DEVICES", ("cpu",)) and not find_gpus():
        return f"{name} needs a GPU"
    return None


@functools.cache
def find_gpus() -> list[str]:
    return machine.gpus()


def _need(package: str, name: str) -> None:
    if absent := plugins.missing(package, name):
        pytest.skip(f"{name} needs {', '.join(absent)}, which is not installed")


@pytest.fixture(scope="session")
def checkpoint(checkpoint_of: Checkpoints) -> Path:
    return checkpoint_of("pytorch")


@pytest.fixture(scope="session")
def torchscript(artifact_of: Artifacts) -> Path:
    return artifact_of("pytorch", "torchscript")


@pytest.fixture(scope="session")
def aotinductor(artifact_of: Artifacts) -> Path:
    return artifact_of("pytorch", "aotinductor")


@pytest.fixture(scope="session")
def onnx(artifact_of: Artifacts) -> Path:
    return artifact_of("pytorch", "onnx")


@pytest.fixture(scope="session")
def saved_model(artifact_of: Artifacts) -> Path:
    return artifact_of("keras_tf", "saved_model")


@pytest.fixture(scope="session")
def tflite(artifact_of: Artifacts) -> Path:
    return artifact_of("keras_tf", "tflite")


@pytest.fixture(scope="session")
def stablehlo(artifact_of: Artifacts) -> Path:
    return artifact_of("flax_nnx", "stablehlo")


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact without a model, enough for the null runtime."""
    return empty_artifact(tmp_path_factory.mktemp("empty"), 28)


@pytest.fixture(scope="session")
def image() -> NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, (1, 28, 28, 3), np.uint8)
