"""Reduced precision: artifacts of their own, with what they cost in accuracy."""

from pathlib import Path

import numpy as np
import pytest
from conftest import Artifacts, Checkpoints, Stage, check_stage
from hypothesis import given
from hypothesis import strategies as st

from export.verify import relax
from medserve import plugins, store
from medserve.certificate import compare, unproven
from medserve.matrix import plan
from medserve.models import Certificate
from medserve.scores import paired_change
from medserve.study import Measure, Study

RNG = np.random.default_rng(7)
COUNT = 1000


def proof(wrong: int, labels: int = COUNT) -> Certificate:
    """Of scores with `wrong` more wrong decisions than a reference without any."""
    truth = RNG.integers(0, 4, labels)
    reference = np.full((labels, 4), 0.1, np.float32)
    reference[np.arange(labels), truth] = 0.7
    scores = reference.copy()
    scores[:wrong] = np.roll(scores[:wrong], 1, 1)
    return relax(compare(scores, reference, truth, runtime="null", versions={}), scores, reference, truth)


def test_a_few_changed_decisions_are_recorded_and_allowed() -> None:
    found = proof(wrong=2)
    assert (found.kind, found.valid, found.limit_abs, found.decisions_changed) == ("lossy", True, None, 2)
    assert found.max_abs == pytest.approx(0.6)
    assert found.accuracy == 1 - 2 / COUNT
    assert found.accuracy_change is not None
    assert found.accuracy_change[0] < -2 / COUNT < found.accuracy_change[1]


def test_a_loss_that_may_be_a_point_is_not_allowed() -> None:
    found = proof(wrong=10)
    assert not found.valid
    assert "95 % interval of the change of accuracy [-0.0" in str(found.reason)
    assert "it must lie above -0.01" in str(found.reason)


def test_too_few_images_to_know_are_not_enough() -> None:
    assert not proof(wrong=0, labels=50).valid


def test_scores_that_are_not_finite_stay_invalid() -> None:
    broken = relax(unproven(3, "null", "it is odd"), *(np.zeros((3, 2), np.float32),) * 2, np.zeros(3, np.int64))
    assert (broken.kind, broken.valid, broken.reason) == ("lossy", False, "it is odd")


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_the_interval_is_of_a_share_and_turns_with_its_sides(pairs: list[tuple[bool, bool]]) -> None:
    now, before = np.array(pairs).T
    now, before = now.astype(float), before.astype(float)
    change, error = paired_change(now, before)
    assert error > 0
    assert (-change, error) == pytest.approx(paired_change(before, now), abs=1e-12)
    assert abs(change) <= abs(now.mean() - before.mean())


# As Agresti & Min work it: n = 1600, 150 and 86 in the discordant cells.
def test_the_interval_agrees_with_one_worked_by_hand() -> None:
    now = np.array([True] * 150 + [False] * 86 + [True] * 1364)
    before = np.array([False] * 150 + [True] * 86 + [True] * 1364)
    gained, lost, count = 150.5, 86.5, 1602
    error = np.sqrt((gained + lost) / count - ((gained - lost) / count) ** 2) / np.sqrt(count)
    assert paired_change(now.astype(float), before.astype(float)) == pytest.approx((64 / count, error))


def test_the_labels_of_an_image_change_together() -> None:
    """The interval of a mean over images, each with the share of its labels that are right: no more images than are."""
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 2, (400, 5))
    reference = np.where(rng.random(truth.shape) < 0.9, truth, 1 - truth).astype(np.float32)
    scores = np.where(rng.random((400, 1)) < 0.02, 1 - reference, reference).astype(np.float32)
    found = relax(
        compare(scores, reference, truth, task="multi-label", runtime="null", versions={}), scores, reference, truth
    )
    changes = np.append((scores == truth).mean(1) - (reference == truth).mean(1), [np.sqrt(0.5), -np.sqrt(0.5)])
    error = 1.96 * changes.std() / np.sqrt(402)
    assert found.accuracy_change == pytest.approx((changes.mean() - error, changes.mean() + error))
    assert found.decisions_changed == (scores != reference).sum() > 0
    assert found.accuracy == pytest.approx((scores == truth).mean())


LOSSY = [
    (framework, form, precision)
    for framework in plugins.names("export.frameworks")
    for precision in ("int8", "float16", "bfloat16")
    for form in plugins.literals("export.frameworks", framework).get(precision.upper(), ())
]


# One of each precision; the others are tried by `make test-full`.
QUICK = [("pytorch", "onnx", "int8"), ("pytorch", "torchscript", "bfloat16")]


@pytest.mark.parametrize(
    ("framework", "form", "precision"),
    [pytest.param(*row, marks=[] if row in QUICK else [pytest.mark.full]) for row in LOSSY],
)
def test_an_artifact_of_reduced_precision_is_certified_as_lossy(
    framework: str, form: str, precision: str, checkpoint_of: Checkpoints, artifact_of: Artifacts
) -> None:
    out = artifact_of(framework, form, precision)
    artifact = store.read_artifact(out)
    found = artifact.certificate
    assert (artifact.precision, found.kind, found.valid) == (precision, "lossy", True)
    # It is another function than the trainer's: nothing was left as it was.
    assert found.max_abs is not None
    assert found.max_abs > 1e-4
    assert found.accuracy == pytest.approx(artifact.checkpoint.test.accuracy, abs=0.02)
    scores = np.load(out / "scores.npy")
    labels = np.load(checkpoint_of(framework) / "test_labels.npy")
    assert (scores.argmax(1) == labels).mean() == found.accuracy
    # Compiled code is larger than the weights of so small a network.
    assert (
        artifact.compiled_for
        or artifact.model_bytes < (0.5 if precision == "int8" else 0.8) * 4 * artifact.checkpoint.parameters
    )
    for proof in (found, *artifact.further):
        assert proof.kind == "lossy"
        check_stage("loadtest", "time", str(out), "--runtime", proof.runtime, "--seconds", "0.2")


def test_a_precision_that_the_format_has_not_is_a_reason(stage: Stage, checkpoint: Path, tmp_path: Path) -> None:
    done = stage("export", str(checkpoint), "--format", "onnx", "--precision", "bfloat16", "--out", str(tmp_path / "a"))
    assert done.returncode == 1
    assert (
        done.stderr.strip()
        == "error: pytorch does not export onnx in bfloat16; it writes bfloat16 in torchscript, aotinductor"
    )


def test_tf32_is_of_gpus_alone(stage: Stage, checkpoint: Path, tmp_path: Path) -> None:
    done = stage("export", str(checkpoint), "--format", "onnx", "--precision", "tf32", "--out", str(tmp_path / "a"))
    assert done.returncode == 1
    assert "TF32 is a way of NVIDIA's GPUs to compute, which a processor has not; use --device cuda" in done.stderr


def test_int8_is_made_of_whole_numbers(artifact_of: Artifacts) -> None:
    folders = artifact_of("pytorch", "onnx"), artifact_of("pytorch", "onnx", "int8")
    before, after = map(store.read_artifact, folders)
    assert after.operators["DequantizeLinear"] > after.operators["Conv"] == before.operators["Conv"]
    assert "BatchNormalization" not in after.operators
    assert (folders[0] / "config.pbtxt").read_text() == (folders[1] / "config.pbtxt").read_text()


def test_a_study_asks_for_precisions_where_there_are_any() -> None:
    study = Study(
        name="s",
        title="S",
        datasets=("synthetic",),
        sizes=(28,),
        architectures=("cnn",),
        frameworks=("pytorch", "keras_tf"),
        formats=("native", "onnx"),
        precisions=("float32", "int8", "bfloat16"),
        measure=(Measure(profiles=("in-process-1",)),),
    )
    made = [(one.framework, one.format, one.precision) for one in plan(study).exports]
    assert made == [
        ("pytorch", "torchscript", "float32"),
        ("pytorch", "torchscript", "bfloat16"),
        ("pytorch", "onnx", "float32"),
        ("pytorch", "onnx", "int8"),
        ("keras_tf", "saved_model", "float32"),
        ("keras_tf", "saved_model", "bfloat16"),
        ("keras_tf", "onnx", "float32"),
        ("keras_tf", "onnx", "int8"),
    ]
    assert plan(study).exports[3].name == "synthetic-28-cnn-pytorch-s0.onnx-int8"
    assert len({one.deployment.name for one in plan(study).deployed}) == len(plan(study).deployed)
