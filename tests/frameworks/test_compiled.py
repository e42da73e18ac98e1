"""Machine code runs where it was compiled, and says so elsewhere."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import Stage
from recertify import recertify

from medserve import machine, store
from medserve.errors import CannotRun
from medserve.spec import Deployment
from serve.runtimes import open_runtime


@pytest.mark.full
def test_an_artifact_that_was_compiled_elsewhere_is_refused_in_one_line(aotinductor: Path, tmp_path: Path) -> None:
    artifact = store.read_artifact(aotinductor)
    assert artifact.compiled_for == machine.target("torch")
    elsewhere = Path(shutil.copytree(aotinductor, tmp_path / "elsewhere"))
    recertify(elsewhere, compiled_for="riscv64, Another, instructions 0, torch 1.0")
    with pytest.raises(CannotRun) as caught:
        open_runtime(elsewhere, Deployment(artifact=artifact.name, runtime="aotinductor"))
    assert "is compiled for another machine (riscv64, Another" in str(caught.value)
    assert str(caught.value).endswith(f"this one is {machine.target('torch')}; export it again here")
    assert "\n" not in str(caught.value)


@pytest.mark.full
def test_code_for_one_image_keeps_the_scores_and_its_kernels_are_profiled(stage: Stage, aotinductor: Path) -> None:
    words = ("loadtest", "explain", str(aotinductor), "--json", "--options")
    for options in ("{}", '{"single": "compiled"}'):
        # Opening the runtime compares the golden images, one by one.
        done = stage(*words, options)
        assert done.returncode == 0, done.stderr
        (found,) = json.loads(done.stdout)["explained"]
        names = [operator["name"] for operator in found["operators"]]
        assert any("convolution" in name for name in names)


def test_a_target_tells_processors_and_versions_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"/proc/cpuinfo": "model name\t: A\nflags\t\t: sse2 avx\n"}
    monkeypatch.setattr(machine, "read_text", said.get)
    first = machine.target("numpy")
    said["/proc/cpuinfo"] = "model name\t: A\nflags\t\t: avx sse2\n"
    assert machine.target("numpy") == first
    said["/proc/cpuinfo"] = "model name\t: A\nflags\t\t: avx sse2 avx512_bf16\n"
    assert machine.target("numpy") != first
    assert machine.target("scipy") != machine.target("numpy")


def test_without_a_compiler_there_is_a_reason(stage: Stage, checkpoint: Path, tmp_path: Path) -> None:
    words = ["--format", "aotinductor", "--out", str(tmp_path / "a")]
    missing = {"CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = stage("export", str(checkpoint), *words, **missing)
    assert done.returncode == 1
    assert "AOTInductor cannot compile the network here (it needs a C++ compiler)" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "a").exists()
