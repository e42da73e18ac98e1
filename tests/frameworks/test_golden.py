"""Golden images: of the test split, or drawn, so that who gets an artifact gets no patient's image."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from conftest import Checkpoints, check_stage

from export.golden import draw
from export.verify import add_golden
from medserve import plugins, store
from medserve.certificate import check, compare
from medserve.errors import BadInput

PREDICT = """
import sys
from pathlib import Path
import numpy as np
from safetensors.numpy import load_file
from medserve import plugins, store
from medserve.tables import ARCHITECTURES
from train.frameworks import InitialState
checkpoint, golden, out = map(Path, sys.argv[1:])
manifest = store.read_checkpoint(checkpoint)
trainer = plugins.load("train.frameworks", manifest.framework).create(
    ARCHITECTURES[manifest.architecture], len(manifest.classes), manifest.recipe, np.zeros(1, np.float32),
    InitialState(weights=load_file(checkpoint / "weights.safetensors")),
)
np.save(out, trainer.predict(np.load(golden)["images"]))
"""


@pytest.mark.parametrize("size", [28, 65])
def test_drawn_images_are_the_same_every_time_smooth_and_of_many_kinds(size: int) -> None:
    images = draw(32, size)
    assert (images.shape, images.dtype) == ((32, size, size, 3), np.uint8)
    assert np.array_equal(images, draw(32, size))
    pixels = images.astype(float)
    # In noise the step to the next pixel is larger than the deviation; here it is a small part of it.
    assert np.abs(np.diff(pixels, axis=1)).mean() < 0.5 * pixels.std((1, 2)).mean()
    assert pixels.std((1, 2)).min() > 2
    assert len({image.tobytes() for image in images}) == 32
    assert pixels.mean((1, 2)).std() > 20


@pytest.mark.parametrize(
    "framework",
    [
        pytest.param(name, marks=[] if name == "pytorch" else [pytest.mark.full])
        for name in plugins.names("export.frameworks")
    ],
)
def test_drawn_golden_images_have_the_scores_of_the_trainers_own_function(
    framework: str, checkpoint_of: Checkpoints, root: Path, tmp_path: Path
) -> None:
    checkpoint, out = checkpoint_of(framework), tmp_path / "a"
    native = plugins.literals("export.frameworks", framework)["WRITES"][0]
    words = ["--format", native, "--golden", "drawn", "--out", str(out)]
    check_stage("export", str(checkpoint), *words)
    artifact = store.read_artifact(out)
    assert (artifact.golden, artifact.certificate.valid) == ("drawn", True)
    assert artifact.certificate.golden_max_abs is not None
    assert artifact.certificate.golden_max_abs <= 1e-4
    words = [sys.executable, "-c", PREDICT, str(checkpoint), str(out / "golden.npz"), str(tmp_path / "scores.npy")]
    done = subprocess.run(words, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    with np.load(out / "golden.npz") as golden:
        assert golden["scores"] == pytest.approx(np.load(tmp_path / "scores.npy"), abs=1e-5)
        assert np.array_equal(golden["images"], draw(32, 28))
        # They tell this network's function from another one: its scores are not the same for all of them.
        assert golden["scores"].std(0).max() > 0.01
        test = np.load(root / "unpacked" / "synthetic" / "test_images.npy")
        assert not {image.tobytes() for image in golden["images"]} & {image.tobytes() for image in test}
    # A server checks itself against them.
    check_stage("loadtest", "time", str(out), "--seconds", "0.2")


@pytest.mark.parametrize(("error", "valid"), [(9e-5, True), (2e-4, False), (float("nan"), False)])
def test_a_float32_model_keeps_its_limit_on_drawn_images_too(error: float, valid: bool) -> None:
    reference = np.random.default_rng(7).dirichlet(np.ones(8), 500).astype(np.float32)
    proof = compare(reference, reference, reference.argmax(1), runtime="null", versions={})
    found = add_golden(proof, error)
    assert (found.valid, found.reason is None) == (valid, valid)
    assert found.golden_max_abs == (None if np.isnan(error) else error)


@pytest.mark.full
def test_reduced_precision_says_how_far_off_it_is_on_drawn_images(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "a"
    words = ["--format", "onnx", "--precision", "int8", "--golden", "drawn", "--out", str(out)]
    check_stage("export", str(checkpoint), *words)
    artifact = store.read_artifact(out)
    proof = artifact.certificate
    assert (proof.kind, proof.valid) == ("lossy", True)
    assert proof.golden_max_abs is not None
    assert proof.golden_max_abs > 1e-4
    check(artifact)
    silent = msgspec.structs.replace(proof, golden_max_abs=None)
    with pytest.raises(BadInput, match=r"calls itself valid with the largest \|differences\| \[0\.\d+, None\]"):
        check(msgspec.structs.replace(artifact, certificate=silent))
    check_stage("loadtest", "time", str(out), "--seconds", "0.2")


@pytest.mark.full
def test_a_transplanted_network_is_held_to_the_scores_of_the_one_that_was_trained(
    checkpoint_of: Checkpoints, tmp_path: Path
) -> None:
    made = {"flax_nnx": "stablehlo", "pytorch": "torchscript"}
    for framework, form in made.items():
        words = ["--format", form, "--framework", framework, "--golden", "drawn", "--out", str(tmp_path / framework)]
        check_stage("export", str(checkpoint_of("flax_nnx")), *words)
    first, second = (np.load(tmp_path / framework / "golden.npz") for framework in made)
    assert np.array_equal(first["scores"], second["scores"])
