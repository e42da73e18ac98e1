"""What compilers make of a network: by which library, with which weights, and for which machine."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Stage
from recertify import recertify

from medserve import machine, plugins, store
from medserve.errors import CannotRun
from medserve.spec import Deployment
from serve.runtimes import open_runtime

PACKING = re.compile(r"oneDNN reorder (?!1x)")
"""Of weights; the shape of an image begins with 1."""
PACKS = """
import sys
from pathlib import Path

import torch
from torch._inductor import aoti_load_package

from export.frameworks import pytorch
from medserve.tables import SINGLE


class Wide(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = torch.nn.Conv2d(2048, 512, 1)

    def forward(self, image):
        return self.convolution(image.permute(0, 3, 1, 2) / 255).flatten(1).softmax(1)


path = Path(sys.argv[1])
torch.set_num_threads(2)
pytorch.write(Wide().eval(), (1, 1, 2048), "aotinductor", path)
assert torch.get_num_threads() == 2
torch.set_num_threads(1)
for name, model in (("any batch", path), ("one image", path.parents[1] / SINGLE / path.name)):
    compiled = aoti_load_package(str(model), run_single_threaded=True)
    image = torch.zeros((1, 1, 1, 2048), dtype=torch.uint8)
    with torch.inference_mode():
        compiled(image)
        print("#", name, flush=True)
        with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
            compiled(image)
"""
CONVOLUTIONS = """
import sys
from pathlib import Path

import jax
import numpy as np

from medserve.spec import Deployment
from serve.runtimes import stablehlo

kernel = np.ones((3, 3, 64, 64), np.float32) / 576
path = Path(sys.argv[1])


def network(image):
    x = image.astype("float32") * np.ones(64, np.float32)
    layout = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)
    return x.mean((1, 2))


image = jax.ShapeDtypeStruct((1, 16, 16, 1), np.uint8)
path.write_bytes(jax.export.export(jax.jit(network), platforms=("cpu",))(image).serialize())
for options in ({}, {"convolutions": "eigen"}):
    runtime = stablehlo.load(path, 64, Deployment(artifact="a", runtime="stablehlo", options=options))
    print("ynn" in runtime._call.lower(image).compile().as_text())
"""


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
def test_code_for_one_image_keeps_the_scores_and_is_explained_by_what_it_computes(
    stage: Stage, aotinductor: Path
) -> None:
    words = ("loadtest", "explain", str(aotinductor), "--json", "--options")
    for options, packs in (("{}", True), ('{"single": "compiled"}', False)):
        # Opening the runtime compares the golden images, one by one.
        done = stage(*words, options)
        assert done.returncode == 0, done.stderr
        (found,) = json.loads(done.stdout)["explained"]
        names = [operator["name"] for operator in found["operators"]]
        assert any("convolution" in name for name in names)
        assert any(PACKING.match(name) for name in names) is packs


@pytest.mark.full
def test_code_for_one_image_does_not_pack_its_weights_in_every_call(tmp_path: Path) -> None:
    """With the layout for two threads one 1x1 convolution of ResNet-50 takes 45 ms instead of 0.1."""
    model = tmp_path / "1" / "model.pt2"
    model.parent.mkdir()
    done = subprocess.run([sys.executable, "-c", PACKS, str(model)], capture_output=True, text=True, check=True)
    steps = {
        name: [(line.split(",")[5], line.split(",")[-2]) for line in part.splitlines() if ",exec,cpu," in line]
        for name, _, part in (part.partition("\n") for part in done.stdout.split("# ")[1:])
    }
    packing = ("reorder", "512x2048x1x1")
    assert packing in steps["any batch"]
    assert packing not in steps["one image"]
    assert "convolution" in dict(steps["one image"])


def test_convolutions_of_xla_leave_ynnpack_where_an_option_says_so(tmp_path: Path) -> None:
    if absent := plugins.missing("serve.runtimes", "stablehlo"):
        pytest.skip(f"stablehlo needs {', '.join(absent)}, which is not installed")
    words = [sys.executable, "-c", CONVOLUTIONS, str(tmp_path / "model.stablehlo")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


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
