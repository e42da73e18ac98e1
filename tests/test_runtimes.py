"""Every file in serve/runtimes keeps the contract of `runtime_contract.py`.

A new runtime is found by its file. Its format must have an artifact: a fixture of the format's name in conftest.py.
"""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from conftest import why_not

from medserve import machine, plugins, store
from medserve.errors import BadInput
from medserve.spec import Deployment
from medserve.tables import FORMATS
from serve.runtimes import open_runtime

NAMES = plugins.names("serve.runtimes")
READERS = [(name, form) for name in NAMES for form in plugins.literals("serve.runtimes", name)["READS"]]
EMPTY = [name for name in NAMES if not plugins.literals("serve.runtimes", name)["READS"]]
CONTRACT = Path(__file__).with_name("runtime_contract.py")


def needed(name: str) -> None:
    if reason := why_not(name):
        pytest.skip(reason)


@pytest.mark.parametrize(
    ("name", "form", "threads"),
    [*((name, "empty", 1) for name in EMPTY), *((*reader, threads) for reader in READERS for threads in (1, 2))],
)
def test_a_runtime_keeps_the_contract(name: str, form: str, threads: int, request: pytest.FixtureRequest) -> None:
    needed(name)
    folder: Path = request.getfixturevalue(form)
    given = {"RUNTIME": name, "ARTIFACT": str(folder), "THREADS": str(threads)}
    # Everything with one thread; with two only that they are two.
    chosen = [] if threads == 1 else ["-k", "threads"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(CONTRACT), *chosen],
        capture_output=True,
        text=True,
        env={**os.environ, **machine.thread_environment(threads), **given},
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_a_runtime_says_what_it_needs_and_reads(name: str) -> None:
    literals = plugins.literals("serve.runtimes", name)
    assert "REQUIRES" in literals
    assert set(literals["READS"]) <= set(FORMATS)


def imported(name: str) -> "subprocess.CompletedProcess[str]":
    needed(name)
    code = f"from medserve import plugins; plugins.load('serve.runtimes', {name!r})"
    env = {**os.environ, **machine.thread_environment(1)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)


@pytest.mark.parametrize("name", NAMES)
def test_importing_a_runtime_prints_nothing_that_a_program_reads(name: str) -> None:
    done = imported(name)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_gpu_build_of_onnx_runtime_is_quiet_without_a_gpu() -> None:
    assert imported("onnx_runtime").stderr == ""


@pytest.mark.parametrize("name", sorted({name for name, _ in READERS}))
def test_a_format_that_it_does_not_read_is_refused(name: str, empty: Path, tmp_path: Path) -> None:
    reads = plugins.literals("serve.runtimes", name)["READS"]
    other = next(form for form in FORMATS if form not in reads)
    artifact = msgspec.structs.replace(store.read_artifact(empty), format=other)
    store.write_json(tmp_path / "artifact.json", artifact)
    with pytest.raises(BadInput, match=rf"{name} reads {', '.join(reads)}; the artifact .* is {other}"):
        open_runtime(tmp_path, Deployment(artifact="empty", runtime=name))
