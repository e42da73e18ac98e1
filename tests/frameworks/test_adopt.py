"""Models that were made elsewhere: their answers follow from the bytes of an image by hand, in every format."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import job
import numpy as np
import pytest
from conftest import Stage
from foreign_job import BIAS, KINDS, SIZE, WEIGHT
from numpy.typing import NDArray
from PIL import Image

from medserve import store
from medserve.adopted import adoption
from medserve.models import Contract
from medserve.tables import ADAPTER

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
PREPARED = ("--mean", "0.4,0.5,0.6", "--std", "0.2,0.25,0.3")
ASKED = {"torchscript": ("--size", str(SIZE))}
"""TorchScript does not say the size of its images."""
QUICK = ("onnx", "grey", "single", "fixed", "torchscript")
Foreign = Callable[[str], Path]


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Foreign:
    folder = tmp_path_factory.mktemp("foreign")

    def make(kind: str) -> Path:
        path = folder / KINDS[kind][1]
        if not path.exists():
            job.run("foreign_job.py", kind, str(path))
        return path

    return make


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The labels are what the model decides, so that it is always right."""
    path = tmp_path_factory.mktemp("images") / "images.npz"
    drawn = np.random.default_rng(0).integers(0, 256, (40, 1, 1, 3), dtype=np.uint8) * np.ones((1, SIZE, SIZE, 1), "u1")
    np.savez(path, images=drawn, labels=expected(drawn).argmax(1)[:, None])
    return path


def expected(
    images: NDArray[np.uint8], channels: int = 3, classes: int = 3, *, several: bool = False
) -> NDArray[np.float64]:
    """The probabilities of the linear classifier, in double precision: of classes, or of `several` labels."""
    mean, std = np.array(MEAN)[:channels], np.array(STD)[:channels]
    logits = ((images / 255 - mean) / std).mean((1, 2)) @ WEIGHT[:channels, :classes] + BIAS[:classes]
    if classes == 1 or several:
        right = 1 / (1 + np.exp(-logits))
        return right if several else np.concatenate([1 - right, right], 1)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize(
    "kind",
    [
        kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.full)
        for kind in KINDS
        if kind not in ("two", "eight")
    ],
)
def test_an_adopted_model_answers_as_by_hand(kind: str, stage: Stage, foreign: Foreign, tmp_path: Path) -> None:
    channels, classes = 1 if kind == "grey" else 3, 1 if kind == "single" else 3
    words = ("--mean", "0.4", "--std", "0.2") if kind == "grey" else PREPARED
    done = stage("export.adopt", str(foreign(kind)), "--out", str(tmp_path / "mine"), *words, *ASKED.get(kind, ()))
    assert done.returncode == 0, done.stderr
    artifact = store.read_artifact(tmp_path / "mine")
    assert artifact.adopted is not None
    assert artifact.certificate.valid
    assert artifact.certificate.accuracy is None, "there are no labels"
    assert artifact.adopted.reference == "drawn"
    assert artifact.image_shape == (SIZE, SIZE, channels)
    with np.load(tmp_path / "mine" / "golden.npz") as golden:
        by_hand = expected(golden["images"], channels, classes)
        assert np.abs(golden["scores"] - by_hand).max() < 1e-6
    scores = np.load(next((tmp_path / "mine").glob("scores*.npy")))
    assert np.abs(scores - np.load(tmp_path / "mine" / "reference.npy")).max() < 1e-6
    if kind == "tflite":
        contract = store.read_json(tmp_path / "mine" / "1" / ADAPTER, Contract)
        assert contract == artifact.adopted.contract


@pytest.mark.full
@pytest.mark.parametrize(
    ("kind", "form", "runtime"),
    [
        ("keras", "onnx", "openvino_cpu"),
        ("keras", "tflite", "litert"),
        ("saved_model", "onnx", "onnx_runtime"),
        ("torch_export", "onnx", "onnx_runtime"),
        ("torchscript", "torchscript", "torchscript"),
    ],
)
def test_a_conversion_is_an_option_away(
    kind: str, form: str, runtime: str, stage: Stage, foreign: Foreign, tmp_path: Path
) -> None:
    words = ("--out", str(tmp_path / "mine"), "--format", form, "--runtime", runtime, *ASKED.get(kind, ()))
    done = stage("export.adopt", str(foreign(kind)), *words, *PREPARED)
    assert done.returncode == 0, done.stderr
    proof = store.read_artifact(tmp_path / "mine").certificate_of(runtime)
    assert proof is not None
    assert proof.valid


def test_labels_and_expected_scores_are_held_against_the_file(
    stage: Stage, foreign: Foreign, images: Path, tmp_path: Path
) -> None:
    with np.load(images) as given:
        np.save(tmp_path / "right.npy", expected(given["images"]).astype(np.float32))
        np.savez(tmp_path / "beyond.npz", images=given["images"], labels=given["labels"] + 1)
    words = ("export.adopt", str(foreign("onnx")), "--out", str(tmp_path / "mine"))
    right = stage(*words, *PREPARED, "--images", str(images), "--reference", str(tmp_path / "right.npy"))
    assert right.returncode == 0, right.stderr
    assert "right on 100.00 % of 40 images" in right.stderr
    artifact = store.read_artifact(tmp_path / "mine")
    assert artifact.certificate.accuracy == 1.0
    shown = stage(*words[:3], str(tmp_path / "drawn"), *PREPARED, "--images", str(images), "--golden", "drawn")
    assert shown.returncode == 0, shown.stderr
    with np.load(tmp_path / "drawn" / "golden.npz") as golden:
        assert np.abs(golden["scores"] - expected(golden["images"])).max() < 1e-6
        assert golden["images"].std((1, 2)).min() > 0, "those that were given are of one colour each"
    assert store.read_artifact(tmp_path / "drawn").certificate.golden_max_abs is not None
    assert artifact.adopted is not None
    assert artifact.adopted.reference == "given"
    for others, what in (
        (("--images", str(images), "--reference", str(tmp_path / "right.npy")), "differs from right.npy by "),
        (("--images", str(images), "--scale", "-0.004"), "where the commonest class alone has"),
        (("--images", str(tmp_path / "beyond.npz")), "label 1 or 3: the model has the classes 0 to 2"),
        (("--classes", "one,two"), "gives scores of 3 classes, and there are 2"),
    ):
        refused = stage(*words[:3], str(tmp_path / "other"), *others)
        assert (refused.returncode, refused.stdout) == (2, ""), refused.stderr
        assert what in refused.stderr.splitlines()[-1]
        assert not (tmp_path / "other").exists()


def test_a_model_of_several_labels_is_scored_by_each_of_them(
    stage: Stage, foreign: Foreign, images: Path, tmp_path: Path
) -> None:
    with np.load(images) as given:
        drawn, by_hand = given["images"], expected(given["images"], several=True)
    labels = (by_hand > 0.5).astype(np.uint8)
    assert 0 < labels.sum(1).min() < labels.sum(1).max(), "of some images several labels apply"
    np.savez(tmp_path / "several.npz", images=drawn, labels=labels)
    words = ("export.adopt", str(foreign("onnx")), *PREPARED, "--classes", "a,b,c")
    done = stage(*words, "--out", str(tmp_path / "mine"), "--images", str(tmp_path / "several.npz"))
    assert done.returncode == 0, done.stderr
    assert "right on 100.00 % of 120 labels of 40 images, where the commoner value of each alone has " in done.stderr
    artifact = store.read_artifact(tmp_path / "mine")
    assert artifact.checkpoint.task == "multi-label"
    assert (artifact.checkpoint.test.accuracy, artifact.certificate.accuracy, artifact.certificate.valid) == (
        1,
        1,
        True,
    )
    assert np.abs(np.load(tmp_path / "mine" / "scores.npy") - by_hand).max() < 1e-6
    drawn_ones = stage(*words, "--out", str(tmp_path / "other"), "--activation", "sigmoid")
    assert drawn_ones.returncode == 0, drawn_ones.stderr
    assert store.read_artifact(tmp_path / "other").checkpoint.task == "multi-label"
    for wrong, more, what in (
        (labels, ("--activation", "softmax"), "several labels per image, which a softmax excludes; use --activation"),
        (labels + 1, (), "labels hold 1 to 2; expected 0 or 1 per class"),
        (labels[:, :2], (), "labels of shape (40, 2); "),
        (1 - labels, (), "AUC 0.000, below chance; is it prepared as it was trained?"),
    ):
        np.savez(tmp_path / "wrong.npz", images=drawn, labels=wrong)
        out = ("--out", str(tmp_path / "refused"), "--images", str(tmp_path / "wrong.npz"))
        refused = stage(*words, *out, *more)
        assert (refused.returncode, refused.stdout) == (2, ""), refused.stderr
        assert what in refused.stderr.splitlines()[-1]
        assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(
    ("kind", "words", "what"),
    [
        ("two", (), "has 2 inputs (x0, x1); a classifier of images takes the images alone"),
        ("eight", (), "its batch is fixed at 8"),
        ("onnx", ("--layout", "nhwc"), "12 channels as nhwc, shape (None, 3, 12, 12)"),
        ("onnx", ("--size", "32"), "--size 32: the input of"),
        ("onnx", ("--channels", "1"), "--channels 1: the input of"),
        ("onnx", ("--std", "1,0,1"), "--scale and --std must not be 0"),
        ("onnx", ("--mean", "1,2"), "--mean has 2 numbers; expected 1 or 3"),
        ("onnx", ("--mean", "a"), "--mean is 'a'; expected numbers with commas"),
        ("onnx", ("--format", "tflite"), "models are not written as tflite; there is: onnx"),
        ("onnx", ("--runtime", "litert"), "--runtime litert reads tflite, not onnx"),
        ("single", ("--activation", "softmax"), "of which a softmax is always 1"),
    ],
)
def test_what_cannot_be_adopted_is_one_line(
    kind: str, words: tuple[str, ...], what: str, stage: Stage, foreign: Foreign, tmp_path: Path
) -> None:
    refused = stage("export.adopt", str(foreign(kind)), "--out", str(tmp_path / "mine"), *words)
    assert (refused.returncode, refused.stdout) == (2, ""), refused.stderr
    assert what in refused.stderr.splitlines()[-1]
    assert not (tmp_path / "mine").exists()


def test_files_that_are_no_models_are_one_line(stage: Stage, foreign: Foreign, tmp_path: Path) -> None:
    whole = foreign("onnx").read_bytes()
    (tmp_path / "torn.onnx").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "model.xyz").write_bytes(whole)
    for name, what in (("torn.onnx", "no valid ONNX model"), ("model.xyz", "its ending"), ("no.onnx", "no such file")):
        refused = stage("export.adopt", str(tmp_path / name), "--out", str(tmp_path / "mine"))
        assert (refused.returncode, refused.stdout) == (2, ""), refused.stderr
        assert what in refused.stderr.splitlines()[-1]


def test_images_of_a_folder_have_one_size_and_their_classes_by_name(
    stage: Stage, foreign: Foreign, tmp_path: Path
) -> None:
    shades = {"dark": (10, 20, 30), "light": (250, 240, 230), "mixed": (10, 240, 30)}
    labels = {
        name: int(expected(np.full((1, SIZE, SIZE, 3), shade, np.uint8)).argmax()) for name, shade in shades.items()
    }
    ordered = sorted(shades, key=lambda name: labels[name])
    for place, name in enumerate(ordered):
        (tmp_path / "set" / f"{place}-{name}").mkdir(parents=True)
        for index in range(4):
            image = Image.new("RGB", (SIZE, SIZE), shades[name])
            image.save(tmp_path / "set" / f"{place}-{name}" / f"{index}.png")
    words = ("export.adopt", str(foreign("onnx")), "--out", str(tmp_path / "mine"), *PREPARED)
    done = stage(*words, "--images", str(tmp_path / "set"), "--anyway")
    assert done.returncode == 0, done.stderr
    assert store.read_artifact(tmp_path / "mine").checkpoint.classes == tuple(
        f"{place}-{name}" for place, name in enumerate(ordered)
    )
    Image.new("RGB", (SIZE, SIZE + 1)).save(tmp_path / "set" / "0-odd.png")
    refused = stage(*words, "--images", str(tmp_path / "set"))
    assert "expected images of one size" in refused.stderr.splitlines()[-1]
    Image.new("I;16", (SIZE, SIZE)).save(tmp_path / "set" / "0-odd.png")
    refused = stage(*words, "--images", str(tmp_path / "set"))
    assert "0-odd.png: has grey values of more than 8 bits; state the values" in refused.stderr.splitlines()[-1]


def test_images_of_more_than_8_bits_are_read_through_the_window_that_the_manifest_states(
    stage: Stage, foreign: Foreign, tmp_path: Path
) -> None:
    for split in ("train", "val", "test"):
        for index, name in enumerate("xyz"):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            Image.new("I;16", (SIZE, SIZE), 1024 * index).save(tmp_path / "set" / split / name / "0.png")
    words = ("export.adopt", str(foreign("grey")), "--mean", "0.4", "--std", "0.2", "--images", str(tmp_path / "set"))
    done = stage(*words, "--out", str(tmp_path / "mine"), "--window", "0:4096", "--classes", "x,y,z", "--anyway")
    assert done.returncode == 0, done.stderr
    artifact = store.read_artifact(tmp_path / "mine")
    assert artifact.checkpoint.window == (0.0, 4096.0)
    assert "--window=0.0:4096.0" in adoption(artifact)
    assert artifact.certificate.images == 3, "of the folder's own splits the last"
    with np.load(tmp_path / "mine" / "golden.npz") as golden:
        assert sorted(golden["images"][:, 0, 0, 0].tolist()) == [0, 64, 128]
    refused = stage(*words[:-1], "synthetic", "--out", str(tmp_path / "other"), "--window", "0:4096")
    assert "synthetic: a window is for a folder of image files" in refused.stderr.splitlines()[-1]


STUDY = """
name = "adopted"
title = "Adopted"
launches = 2
null = false
[[models]]
artifact = "{artifact}"
[[measure]]
profiles = ["in-process-1"]
seconds = 0.2
warmup_seconds = 0.1
requests = 0
"""


def test_a_study_of_an_adopted_model_is_measured_and_verified(
    stage: Stage, foreign: Foreign, images: Path, tmp_path: Path
) -> None:
    out, run = tmp_path / "mine", tmp_path / "run"
    done = stage("export.adopt", str(foreign("onnx")), "--out", str(out), *PREPARED, "--images", str(images))
    assert done.returncode == 0, done.stderr
    study = tmp_path / "study.toml"
    study.write_text(STUDY.format(artifact=out))
    done = stage("medserve.cli", "run", str(study), "--out", str(run), "--json")
    assert done.returncode == 0, done.stderr
    assert stage("loadtest", "report", str(run)).returncode == 0
    (row,) = json.loads(stage("loadtest", "results", str(run), "--format", "json").stdout)
    assert (row["status"], row["valid"], row["accuracy"], row["n"] > 0) == ("done", True, 1.0, True)
    assert (row["framework"], row["architecture"], row["dataset"][:4]) == ("adopted", "mine", "own-")
    assert f"medserve adopt {foreign('onnx').name} --out mine " in (run / "report.md").read_text()
    verified = stage("loadtest", "verify", str(run))
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "0 differ" in verified.stdout
    (out / "reference.npy").write_bytes(b"")
    other = tmp_path / "other"
    failed = stage("medserve.cli", "run", str(study), "--out", str(other), "--json")
    assert failed.returncode == 1
    assert "reference.npy" in json.loads((other / "failures" / "export-mine.json").read_text())["reason"]


def test_what_contradicts_the_file_or_the_folders_is_refused(stage: Stage, onnx: Path, tmp_path: Path) -> None:
    """A model that takes bytes and gives probabilities: our own, as somebody else's."""
    model, mine = tmp_path / "theirs.onnx", ("--out", str(tmp_path / "mine"))
    shutil.copyfile(onnx / "1" / "model.onnx", model)
    for words, line in (
        (("--mean", "0.5"), "takes bytes as they are; leave out --scale, --mean and --std"),
        (("--gives", "logits"), "its scores are probabilities already (--gives probabilities)"),
        (("--images", "scnas/"), "scnas/: no such folder or file"),
    ):
        refused = stage("export.adopt", str(model), *mine, *words)
        assert (refused.returncode, line in refused.stderr.splitlines()[-1]) == (2, True), refused.stderr
    # The model's order is not that of the alphabet.
    names = [f"{letter}-cell" for letter in "hgfedcba"]
    with np.load(onnx / "golden.npz") as golden:
        labels = golden["scores"].argmax(1)
        for place, image in enumerate(golden["images"]):
            path = tmp_path / "cells" / names[labels[place]] / f"{place}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        lacking = [name for name in names if not (tmp_path / "cells" / name).is_dir()]
        for name in lacking:
            (tmp_path / "cells" / name).mkdir()
            Image.fromarray(golden["images"][0]).save(tmp_path / "cells" / name / "0.png")
    given = ("--images", str(tmp_path / "cells"), "--size", "28")
    right = stage("export.adopt", str(model), *mine, *given, "--classes", ",".join(names))
    assert right.returncode == 0, right.stderr
    artifact = store.read_artifact(tmp_path / "mine")
    assert artifact.checkpoint.classes == tuple(names)
    assert artifact.checkpoint.test.accuracy == pytest.approx(32 / (32 + len(lacking)))
    other = stage("export.adopt", str(model), *mine, *given, "--classes", "1,2,3,4,5,6,7,8")
    assert other.returncode == 2
    assert "the images lie in the folders a-cell, b-cell" in other.stderr
