"""Every exporter that is found makes an artifact that is the trainer's function, and says so; or says why not."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from conftest import Artifacts, Checkpoints, Stage

from export.artifact import triton_config
from medserve import plugins, store
from medserve.certificate import compare
from medserve.models import Artifact
from medserve.tables import FORMATS, INPUT, OPSET, OUTPUT, SINGLE

PAIRS = [
    (framework, form)
    for framework in plugins.names("export.frameworks")
    for form in plugins.literals("export.frameworks", framework)["WRITES"]
]


# Compiling to machine code takes a minute.
@pytest.fixture(
    params=[
        pytest.param(pair, marks=[pytest.mark.full] if pair[1] == "aotinductor" else [], id="-".join(pair))
        for pair in PAIRS
    ]
)
def pair(request: pytest.FixtureRequest, artifact_of: Artifacts, checkpoint_of: Checkpoints) -> tuple[Path, Path]:
    """The checkpoint and the artifact of every framework and format that is found."""
    framework, form = request.param
    return checkpoint_of(framework), artifact_of(framework, form)


def test_an_artifact_is_complete_and_certified(pair: tuple[Path, Path]) -> None:
    checkpoint, artifact = pair
    manifest = store.read_artifact(artifact)
    assert manifest.certificate.valid
    assert manifest.certificate.images == 1024
    assert manifest.certificate.max_abs is not None
    assert 0 <= manifest.certificate.max_abs <= 1e-4
    assert manifest.checkpoint == store.read_checkpoint(checkpoint)
    assert manifest.certificate.accuracy == pytest.approx(manifest.checkpoint.test.accuracy, abs=1e-3)
    # cnn: 288,488 float32 numbers, and the graph around them.
    assert 4 * 288_488 < manifest.model_bytes < 12 * 288_488
    assert (manifest.compiled_for is None) == (FORMATS[manifest.format].compiled_by is None)
    assert bool(manifest.operators) == (manifest.format == "onnx")
    row = FORMATS[manifest.format]
    assert {"golden.npz", row.path} <= set(manifest.files)
    assert (artifact / "config.pbtxt").is_file() == (row.triton_platform is not None)
    names = {path.name for path in artifact.iterdir() if not path.match("scores*.npy")}
    beside = {SINGLE} if manifest.format == "aotinductor" else set()
    assert names <= {"artifact.json", "golden.npz", "config.pbtxt", "1"} | beside
    assert (artifact / "scores.npy").is_file()


def test_a_certificate_follows_from_the_scores_that_the_artifact_keeps(pair: tuple[Path, Path]) -> None:
    checkpoint, artifact = pair
    proof = store.read_artifact(artifact).certificate
    labels, reference = (np.load(checkpoint / f"test_{kind}.npy") for kind in ("labels", "scores"))
    scores = np.load(artifact / "scores.npy")
    derived = compare(scores, reference, labels, runtime=proof.runtime, versions=proof.versions)
    assert msgspec.structs.replace(derived, subject=proof.subject) == proof
    assert proof.auc == pytest.approx(store.read_checkpoint(checkpoint).test.auc, abs=1e-5)


def test_the_golden_file_holds_images_and_the_trainers_scores(pair: tuple[Path, Path]) -> None:
    checkpoint, artifact = pair
    with np.load(artifact / "golden.npz") as golden:
        assert golden["images"].shape == (32, 28, 28, 3)
        assert golden["images"].dtype == np.uint8
        scores = np.load(checkpoint / "test_scores.npy")
        assert np.array_equal(golden["scores"], scores[np.linspace(0, 1023, 32).astype(int)])


@pytest.mark.parametrize("framework", [framework for framework, form in PAIRS if form == "onnx"])
def test_onnx_has_the_pinned_opset_and_names(framework: str, artifact_of: Artifacts) -> None:
    import onnx as library

    model = library.load(artifact_of(framework, "onnx") / "1" / "model.onnx")
    library.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    (image,), (output,) = model.graph.input, model.graph.output
    assert (image.name, output.name) == (INPUT, OUTPUT)
    sizes = [dim.dim_value for dim in image.type.tensor_type.shape.dim]
    assert image.type.tensor_type.elem_type == library.TensorProto.UINT8
    assert sizes[1:] == [28, 28, 3]
    assert image.type.tensor_type.shape.dim[0].dim_param
    operators = store.read_artifact(artifact_of(framework, "onnx")).operators
    assert operators["Conv"] == 6
    assert sum(operators.values()) == len(model.graph.node)


LAYOUTS = """
import sys

import torch

graph = torch.jit.load(sys.argv[1]).inlined_graph
for node in graph.findAllNodes("prim::Constant"):
    if node.hasAttribute("value") and node.kindOf("value") == "t" and node.t("value").dim() == 4:
        value = node.t("value")
        print(value.is_contiguous(memory_format=torch.channels_last), *value.shape)
"""


def test_weights_of_torchscript_are_stored_channels_last(torchscript: Path) -> None:
    words = [sys.executable, "-W", "ignore", "-c", LAYOUTS, str(torchscript / "1" / "model.pt")]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len([line for line in told if line.endswith(" 3 3")]) >= 6
    assert all(line.startswith("True") for line in told)


def test_triton_reads_the_names_of_the_graph(torchscript: Path, onnx: Path) -> None:
    assert f'name: "{OUTPUT}__0"' in (torchscript / "config.pbtxt").read_text()
    text = (onnx / "config.pbtxt").read_text()
    assert 'platform: "onnxruntime_onnx"' in text
    assert f'name: "{INPUT}" data_type: TYPE_UINT8 dims: [ 28, 28, 3 ]' in text
    assert f'name: "{OUTPUT}" data_type: TYPE_FP32 dims: [ 8 ]' in text
    assert text == triton_config("onnxruntime_onnx", store.read_artifact(onnx).checkpoint)


def test_a_format_that_the_framework_does_not_write_is_a_reason(stage: Stage, checkpoint: Path, tmp_path: Path) -> None:
    done = stage("export", str(checkpoint), "--format", "stablehlo", "--out", str(tmp_path / "a"))
    assert done.returncode == 1
    writes = ", ".join(plugins.literals("export.frameworks", "pytorch")["WRITES"])
    others = "flax_nnx can, with the same weights: add --framework flax_nnx"
    assert done.stderr.strip() == f"error: pytorch does not export to stablehlo; it writes {writes}; {others}"
    assert not (tmp_path / "a").exists()


FRAMEWORKS = plugins.names("export.frameworks")


# Around the circle by default, so that each is once the trainer and once the exporter.
NEXT = dict(zip(FRAMEWORKS, [*FRAMEWORKS[1:], FRAMEWORKS[0]], strict=True))


@pytest.mark.parametrize(
    ("trained_in", "framework"),
    [
        pytest.param(one, other, marks=[] if NEXT[one] == other else [pytest.mark.full])
        for one in FRAMEWORKS
        for other in FRAMEWORKS
        if one != other
    ],
)
def test_every_framework_exports_the_weights_of_every_other_as_the_same_function(
    trained_in: str, framework: str, stage: Stage, checkpoint_of: Checkpoints, tmp_path: Path
) -> None:
    native = plugins.literals("export.frameworks", framework)["WRITES"][0]
    words = [str(checkpoint_of(trained_in)), "--format", native, "--framework", framework]
    done = stage("export", *words, "--out", str(tmp_path / "a"))
    assert done.returncode == 0, done.stderr
    artifact = store.read_artifact(tmp_path / "a")
    assert artifact.certificate.valid
    assert (artifact.checkpoint.framework, artifact.transplanted) == (trained_in, framework)


def test_an_unknown_format_is_refused(stage: Stage, checkpoint: Path, tmp_path: Path) -> None:
    done = stage("export", str(checkpoint), "--format", "pickle", "--out", str(tmp_path / "a"))
    assert done.returncode == 2
    assert "unknown format 'pickle'; there is: " in done.stderr


def test_a_changed_checkpoint_is_refused(stage: Stage, checkpoint: Path, tmp_path: Path) -> None:
    broken = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, broken)
    weights = bytearray((broken / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (broken / "weights.safetensors").write_bytes(weights)
    done = stage("export", str(broken), "--format", "onnx", "--out", str(tmp_path / "a"))
    assert done.returncode == 2
    assert "weights.safetensors: its SHA-256 is not the manifest's" in done.stderr


def test_a_model_that_is_another_function_gets_no_valid_certificate(
    stage: Stage, checkpoint: Path, tmp_path: Path
) -> None:
    """The export is kept to be looked at, and says that it must not be used."""
    other = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, other)
    scores = np.load(other / "test_scores.npy")
    np.save(other / "test_scores.npy", scores[:, ::-1])
    manifest = json.loads((other / "checkpoint.json").read_text())
    manifest["files"]["test_scores.npy"] = store.sha256(other / "test_scores.npy")
    (other / "checkpoint.json").write_text(json.dumps(manifest))
    out = tmp_path / "artifact"
    done = stage("export", str(other), "--format", "torchscript", "--out", str(out))
    assert done.returncode == 1
    assert "no valid certificate: largest |difference of probabilities|" in done.stderr
    # The trainer's scores are not its weights' any more, so it is the network that is found to be another one.
    assert "checkpoint: another function in pytorch (largest |difference of probabilities|" in done.stderr
    assert not store.read_json(out / "artifact.json", Artifact).certificate.valid


@pytest.fixture
def broken(tmp_path: Path) -> Callable[..., str]:
    """`broken(module)`: a PYTHONPATH on which that module is found, and fails when it is imported."""

    def make(module: str) -> str:
        (tmp_path / "shelf" / module).mkdir(parents=True)
        (tmp_path / "shelf" / module / "__init__.py").write_text("raise ImportError('libodd.so is missing')\n")
        return str(tmp_path / "shelf")

    return make


@pytest.mark.parametrize(
    ("framework", "native", "converter"),
    [
        ("pytorch", "torchscript", "onnxscript"),
        pytest.param("keras_tf", "saved_model", "tf2onnx", marks=pytest.mark.full),
        pytest.param("flax_nnx", "stablehlo", "jax2onnx", marks=pytest.mark.full),
    ],
)
def test_without_its_converter_a_framework_still_exports_natively(
    framework: str,
    native: str,
    converter: str,
    stage: Stage,
    checkpoint_of: Checkpoints,
    broken: Callable[..., str],
    tmp_path: Path,
) -> None:
    checkpoint, shelf = str(checkpoint_of(framework)), broken(converter)
    done = stage("export", checkpoint, "--format", "onnx", "--out", str(tmp_path / "a"), PYTHONPATH=shelf)
    assert done.returncode == 1
    assert f"needs {converter}, which cannot be imported: libodd.so is missing" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "a").exists()
    done = stage("export", checkpoint, "--format", native, "--out", str(tmp_path / "b"), PYTHONPATH=shelf)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("framework", "module"), [("pytorch", "torch"), ("keras_tf", "keras"), ("flax_nnx", "flax")])
def test_a_framework_that_cannot_be_imported_is_a_reason(
    framework: str, module: str, stage: Stage, root: Path, broken: Callable[..., str], tmp_path: Path
) -> None:
    words = ["--dataset", "synthetic", "--size", "28", "--architecture", "cnn", "--framework", framework]
    done = stage("train", "run", *words, "--out", str(tmp_path / "c"), PYTHONPATH=broken(module))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"error: {framework} cannot be imported: libodd.so is missing"


UNKNOWN_OPERATORS = {
    "pytorch": """
import torch
class Odd(torch.nn.Module):
    def forward(self, image):
        return torch.special.bessel_j0(image.float())
exporter._onnx(Odd(), torch.zeros((2, 8, 8, 3), dtype=torch.uint8), path)
""",
    "keras_tf": """
import tensorflow as tf
@tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 3), tf.uint8, name="image")])
def odd(image):
    x = tf.cast(image, tf.float32)
    return {"probabilities": tf.math.igamma(x, x)}
exporter._onnx(odd, path)
""",
    "flax_nnx": """
import jax
def odd(image):
    return jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct(image.shape, image.dtype), image)
(batch,) = jax.export.symbolic_shape("batch")
exporter._onnx(odd, jax.ShapeDtypeStruct((batch, 8, 8, 3), "uint8"), path)
""",
}


@pytest.mark.parametrize("framework", UNKNOWN_OPERATORS)
def test_an_operator_that_the_converter_lacks_is_a_reason(framework: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    code = (
        f"from pathlib import Path\nfrom export.frameworks import {framework} as exporter\npath = Path({str(path)!r})\n"
    )
    code += UNKNOWN_OPERATORS[framework].strip().replace("exporter._onnx", "try:\n    exporter._onnx")
    code += "\nexcept exporter.CannotRun as error:\n    print('REASON', error)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "REASON" in done.stdout, done.stderr
    assert not path.exists()
