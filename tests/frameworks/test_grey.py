"""Images of one channel, two classes: trained in every framework, exported, certified, and served as files."""

import io
from pathlib import Path

import numpy as np
import pytest
from conftest import Stage
from PIL import Image
from server_process import serving

from medserve import plugins, store

pytestmark = pytest.mark.full
COUNTS = {"train": 128, "val": 32, "test": 32}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The second class is brighter."""
    folder, generator, made = tmp_path_factory.mktemp("grey"), np.random.default_rng(0), {}
    for split, count in COUNTS.items():
        labels = np.arange(count) % 2
        made[f"{split}_images"] = generator.integers(0, 128, (count, 28, 28), np.uint8) + 100 * labels[
            :, None, None
        ].astype("u1")
        made[f"{split}_labels"] = labels[:, None].astype(np.uint8)
    np.savez(folder / "breastmnist.npz", **made)
    return folder


@pytest.mark.parametrize("architecture", ["cnn", "resnet18"])
@pytest.mark.parametrize("framework", plugins.names("train.frameworks"))
def test_a_grey_data_set_goes_the_whole_way(
    framework: str, architecture: str, archive: Path, stage: Stage, tmp_path: Path
) -> None:
    words = ("--dataset", "breastmnist", "--size", "28", "--framework", framework, "--architecture", architecture)
    env = {"MEDMNIST_ROOT": str(archive)}
    done = stage(
        "train",
        "run",
        *words,
        "--set",
        "epochs=1",
        "--set",
        "batch=32",
        "--unofficial",
        "--out",
        str(tmp_path / "made"),
        **env,
    )
    assert done.returncode == 0, done.stderr
    assert store.read_checkpoint(tmp_path / "made").channels == 1
    native = plugins.literals("export.frameworks", framework)["WRITES"][0]
    for form in (native, "onnx"):
        out = tmp_path / form
        done = stage("export", str(tmp_path / "made"), "--format", form, "--out", str(out), **env)
        assert done.returncode == 0, done.stderr
        artifact = store.read_artifact(out)
        assert artifact.certificate.valid
        assert artifact.image_shape == (28, 28, 1)
    file = io.BytesIO()
    with np.load(tmp_path / "onnx" / "golden.npz") as golden:
        Image.fromarray(golden["images"][0, ..., 0]).save(file, "PNG")
        expected = golden["scores"][0]
    with serving(tmp_path / "onnx") as server:
        answer = server.ask("POST", f"/v2/models/{server.model}/classify", file.getvalue())
    assert answer.status == 200
    probabilities = {one["name"]: one["probability"] for one in answer.json["classes"]}
    assert np.allclose([probabilities[name] for name in artifact.checkpoint.classes], expected, atol=1e-5)
