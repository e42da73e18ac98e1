"""One data set of each task, of one and three channels: trained in every framework, exported, certified, and served."""

import io
from pathlib import Path

import numpy as np
import pytest
from conftest import Stage, check_stage, why_not
from medmnist.evaluator import getACC, getAUC
from numpy.typing import NDArray
from PIL import Image
from server_process import serving

from medserve import plugins, store, wire
from medserve.tables import DATASETS, FORMATS

pytestmark = pytest.mark.full
COUNTS = {"train": 128, "val": 32, "test": 32}
MEDMNISTS_WORDS = {
    "multi-class": "multi-class",
    "binary": "multi-class",  # there are scores of both classes
    "ordinal": "ordinal-regression",
    "multi-label": "multi-label, binary-class",
}
CASES = [
    ("bloodmnist", "cnn"),
    ("breastmnist", "cnn"),
    ("breastmnist", "resnet18"),
    ("retinamnist", "cnn"),
    ("chestmnist", "cnn"),
]


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in which the mean brightness tells the class, or the brightness of each row of pixels a label."""
    folder, generator = tmp_path_factory.mktemp("made"), np.random.default_rng(0)
    for name in dict(CASES):
        spec, made = DATASETS[name], {}
        shape = (28, 28) if spec.channels == 1 else (28, 28, 3)
        for split, count in COUNTS.items():
            images = generator.integers(0, 128, (count, *shape), np.uint8)
            if spec.task == "multi-label":
                labels = (generator.random((count, spec.classes)) < 0.4).astype(np.uint8)
                images += 100 * labels.repeat(2, 1)[:, :, None]
            else:
                labels = (np.arange(count) % spec.classes).astype(np.uint8)[:, None]
                images += (labels * (120 // spec.classes)).reshape(-1, *(1,) * len(shape))
            made |= {f"{split}_images": images, f"{split}_labels": labels}
        np.savez(folder / f"{name}.npz", **made)
    return folder


@pytest.mark.parametrize(("name", "architecture"), CASES)
@pytest.mark.parametrize("framework", plugins.names("train.frameworks"))
def test_a_data_set_of_each_task_goes_the_whole_way(
    framework: str, name: str, architecture: str, archives: Path, stage: Stage, tmp_path: Path
) -> None:
    spec, home, env = DATASETS[name], tmp_path / "made", {"MEDMNIST_ROOT": str(archives)}
    words = ("--dataset", name, "--size", "28", "--framework", framework, "--architecture", architecture)
    words += ("--set", "epochs=1", "--set", "batch=32", "--set", "balanced=true", "--unofficial")
    check_stage("train", "run", *words, "--out", str(home), **env)
    checkpoint = store.read_checkpoint(home)
    assert (checkpoint.channels, checkpoint.task) == (spec.channels, spec.task)
    labels, scores = np.load(home / "test_labels.npy"), np.load(home / "test_scores.npy")
    assert checkpoint.test.accuracy == pytest.approx(getACC(labels, scores, MEDMNISTS_WORDS[spec.task]), abs=1e-12)
    assert checkpoint.test.auc == pytest.approx(getAUC(labels, scores, MEDMNISTS_WORDS[spec.task]), abs=1e-12)
    assert (np.abs(scores.sum(1) - 1).max() < 1e-5) == (spec.task != "multi-label")
    forms = plugins.literals("export.frameworks", framework)["WRITES"]
    for form in forms if spec.task == "multi-label" else {forms[0], "onnx"}:
        if why_not(FORMATS[form].runtime):
            continue
        # Drawn golden images have the scores that the framework itself computes, nothing exported.
        out, golden_images = tmp_path / form, "drawn" if form == "onnx" else "test"
        check_stage("export", str(home), "--format", form, "--golden", golden_images, "--out", str(out), **env)
        artifact = store.read_artifact(out)
        assert artifact.certificate.valid
        assert artifact.certificate.accuracy == pytest.approx(checkpoint.test.accuracy, abs=0.05)
        assert artifact.image_shape == (28, 28, spec.channels)
    if framework == "pytorch":  # which opens the checkpoint in every framework
        check_stage("train", "parity", str(home), **env)
    with np.load(tmp_path / "onnx" / "golden.npz") as golden:
        check_answers(tmp_path / "onnx", golden["images"][:1], golden["scores"][:1])


def check_answers(folder: Path, images: NDArray[np.uint8], expected: NDArray[np.float32]) -> None:
    """A tensor and an image file are answered with the same probabilities, by the words of the task."""
    checkpoint = store.read_artifact(folder).checkpoint
    file = io.BytesIO()
    Image.fromarray(images[0].squeeze()).save(file, "PNG")
    headers, body = wire.encode_request(images)
    with serving(folder) as server:
        assert np.abs(server.ask("POST", server.infer_path, body, headers).scores - expected).max() < 1e-4
        answer = server.ask("POST", f"/v2/models/{server.model}/classify", file.getvalue())
        config = server.ask("GET", f"/v2/models/{server.model}/config").json
    assert answer.status == 200
    assert answer.json["task"] == config["parameters"]["task"]["string_value"] == checkpoint.task
    several = checkpoint.task == "multi-label"
    assert ("classes" in answer.json, "labels" in answer.json) == (not several, several)
    ranked = answer.json["labels" if several else "classes"]
    found = {one["name"]: one["probability"] for one in ranked}
    assert np.allclose([found[name] for name in checkpoint.classes], expected[0], atol=1e-4)
    if several:
        assert all(one["applies"] == (one["probability"] > 0.5) for one in ranked)
