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
CONTRACT = Path(__file__).parents[1] / "support" / "runtime_contract.py"


def needed(name: str) -> None:
    if reason := why_not(name):
        pytest.skip(reason)


def started(words: list[str], name: str, folder: Path, threads: int) -> "subprocess.CompletedProcess[str]":
    # The contract needs no plug-in of pytest; loading them takes longer than most of its tests.
    given = {"RUNTIME": name, "ARTIFACT": str(folder), "THREADS": str(threads), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    env = {**os.environ, **machine.thread_environment(threads), **given}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=env)


# Their artifacts are compiled for a minute.
COMPILED = {"aotinductor", "saved_model_xla"}


@pytest.mark.parametrize(
    ("name", "form"),
    [
        pytest.param(*reader, marks=[pytest.mark.full] if reader[0] in COMPILED else [])
        for reader in (*((name, "empty") for name in EMPTY), *READERS)
    ],
)
def test_a_runtime_keeps_the_contract(name: str, form: str, request: pytest.FixtureRequest) -> None:
    needed(name)
    folder: Path = request.getfixturevalue(form)
    done = started(["-m", "pytest", "-q", str(CONTRACT)], name, folder, 1)
    assert done.returncode == 0, done.stdout + done.stderr


TWO_THREADS = """
import os
from pathlib import Path
from medserve.spec import Deployment
from serve.runtimes import open_runtime
folder = Path(os.environ["ARTIFACT"])
deployment = Deployment(artifact=folder.name, runtime=os.environ["RUNTIME"], threads=2, batch_sizes=(1,))
print("threads", open_runtime(folder, deployment)[0].facts()["threads"])
"""


@pytest.mark.parametrize(
    ("name", "form"),
    # One of each library; the contract asks for a single thread of all.
    [
        pytest.param(*reader, marks=[pytest.mark.full] if reader[0] in COMPILED else [])
        for reader in dict(READERS).items()
    ],
)
def test_a_runtime_has_two_threads_where_it_is_given_two(name: str, form: str, request: pytest.FixtureRequest) -> None:
    needed(name)
    if plugins.literals("serve.runtimes", name).get("DEVICES") == ("cuda",):
        pytest.skip(f"{name} has no threads on a processor")
    done = started(["-c", TWO_THREADS], name, request.getfixturevalue(form), 2)
    assert done.stdout.splitlines()[-1:] == ["threads 2"], done.stderr


LITTLE_MEMORY = """
import os, re, resource
from pathlib import Path
from medserve.spec import Deployment
from serve.runtimes import open_fitting, open_runtime
folder = Path(os.environ["ARTIFACT"])
deployment = Deployment(artifact=folder.name, runtime=os.environ["RUNTIME"], batch_sizes=(1, 8))
open_runtime(folder, deployment)
size = 1024 * int(re.search(r"VmSize:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
resource.setrlimit(resource.RLIMIT_AS, (size + 2**28,) * 2)
deployment = Deployment(artifact=folder.name, runtime=os.environ["RUNTIME"], batch_sizes=(1, 8, 40000))
runtime, _, fitting, why = open_fitting(folder, deployment)
print(fitting.batch_sizes, why)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="its memory is told by Linux alone")
@pytest.mark.parametrize(("name", "form"), [("torchscript", "torchscript"), ("onnx_runtime", "onnx")])
def test_a_batch_that_does_not_fit_into_memory_is_left_out(
    name: str, form: str, request: pytest.FixtureRequest
) -> None:
    done = started(["-c", LITTLE_MEMORY], name, request.getfixturevalue(form), 1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("(1, 8) batches of 40000 need more memory than cpu has: "), done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_a_runtime_says_what_it_needs_and_reads(name: str) -> None:
    literals = plugins.literals("serve.runtimes", name)
    assert "REQUIRES" in literals
    assert set(literals["READS"]) <= set(FORMATS)


@pytest.mark.parametrize("name", sorted({name for name, _ in READERS}))
def test_a_format_that_it_does_not_read_is_refused(name: str, empty: Path, tmp_path: Path) -> None:
    reads = plugins.literals("serve.runtimes", name)["READS"]
    other = next(form for form in FORMATS if form not in reads)
    artifact = msgspec.structs.replace(store.read_artifact(empty), format=other)
    store.write_json(tmp_path / "artifact.json", artifact)
    with pytest.raises(BadInput, match=rf"{name} reads {', '.join(reads)}; the artifact .* is {other}"):
        open_runtime(tmp_path, Deployment(artifact="empty", runtime=name))
