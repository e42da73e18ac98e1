"""What is certified: scores that are the trainer's, by each runtime that reads an artifact, or the reason why not."""

from pathlib import Path

import numpy as np
import pytest
from conftest import Artifacts, Stage, readers

from medserve import plugins, store
from medserve.certificate import compare
from medserve.models import Certificate
from medserve.tables import FORMATS

RNG = np.random.default_rng(7)


def probabilities(count: int = 500, classes: int = 8) -> np.ndarray:
    return RNG.dirichlet(np.ones(classes), count).astype(np.float32)


def certificate(scores: np.ndarray, reference: np.ndarray) -> Certificate:
    labels = reference.argmax(1).astype(np.int64)
    return compare(scores, reference, labels, runtime="null", versions={})


def test_equal_scores_are_certified() -> None:
    reference = probabilities()
    proof = certificate(reference.copy(), reference)
    assert proof.valid
    assert (proof.max_abs, proof.max_log_abs, proof.decisions_changed, proof.accuracy) == (0.0, 0.0, 0, 1.0)


def test_an_error_above_the_limit_is_not_certified() -> None:
    reference = probabilities()
    scores = reference.copy()
    scores[123, 4] += 2e-4
    proof = certificate(scores, reference)
    assert not proof.valid
    assert proof.max_abs == pytest.approx(2e-4, rel=1e-3)
    assert "largest |difference of probabilities| is 2.00e-04; the limit is 1e-04" in str(proof.reason)


@pytest.mark.parametrize("gap", [1e-4, 3e-4])
def test_a_changed_decision_counts_unless_it_is_a_near_tie(gap: float) -> None:
    reference = np.array([[0.5 + gap / 2, 0.5 - gap / 2, 0.0]] * 3, np.float64)
    scores = reference[:, [1, 0, 2]]
    proof = certificate(scores.astype(np.float32), reference.astype(np.float32))
    assert proof.decisions_changed == (3 if gap > 2e-4 else 0)
    assert proof.near_ties == (0 if gap > 2e-4 else 3)


@pytest.mark.parametrize(("distance", "changed", "ties"), [(0.9e-4, 0, 3), (1.1e-4, 3, 0)])
def test_each_label_decides_by_its_side_of_one_half(distance: float, changed: int, ties: int) -> None:
    """Three of eight decisions change; no class of an image is the best one, and none excludes another."""
    reference = np.array([[0.5 + distance] * 3 + [0.9], [0.9, 0.8, 0.1, 0.0]], np.float32)
    scores = reference.copy()
    scores[0, :3] = 0.5 - distance
    labels = np.array([[1, 1, 1, 0], [1, 1, 0, 0]])
    proof = compare(scores, reference, labels, task="multi-label", runtime="null", versions={})
    assert (proof.decisions_changed, proof.near_ties, proof.images) == (changed, ties, 2)
    assert proof.accuracy == pytest.approx(4 / 8)
    assert not proof.valid


@pytest.mark.parametrize("distance", [0.99e-4, 1.01e-4])
def test_within_the_limit_no_clear_decision_about_a_label_changes(distance: float) -> None:
    reference = np.array([[0.5 + distance / 2, 0.5 - distance / 2]], np.float32)
    proof = compare(1 - reference, reference, None, task="multi-label", runtime="null", versions={})
    assert (proof.decisions_changed, proof.near_ties) == (0, 2)
    assert proof.valid == (distance < 1e-4)
    assert (proof.accuracy, proof.auc) == (None, None)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_not_certified(bad: float) -> None:
    reference = probabilities()
    scores = reference.copy()
    scores[5, 5] = bad
    proof = certificate(scores, reference)
    assert not proof.valid
    assert proof.max_abs is None


def test_scores_of_another_shape_are_not_certified() -> None:
    reference = probabilities()
    assert not certificate(reference[:, :7], reference).valid


def test_log_errors_are_taken_above_a_floor() -> None:
    reference = np.array([[1.0, 0.0]], np.float32)
    scores = np.array([[1.0, 1e-9]], np.float32)
    assert certificate(scores, reference).max_log_abs == 0.0


READERS = [(form, name) for form in FORMATS for name in readers(form) if name != FORMATS[form].runtime]
FRAMEWORKS = {
    form: framework
    for framework in plugins.names("export.frameworks")
    for form in plugins.literals("export.frameworks", framework)["WRITES"]
}


@pytest.mark.parametrize(("form", "runtime"), READERS)
def test_a_further_runtime_is_certified_on_the_whole_test_split(
    form: str, runtime: str, artifact_of: Artifacts
) -> None:
    artifact = store.read_artifact(artifact_of(FRAMEWORKS[form], form))
    proof = artifact.certificate_of(runtime)
    assert proof is not None
    assert proof in artifact.further
    assert (proof.valid, proof.images, proof.kind) == (True, 1024, "float32")
    assert proof.max_abs is not None
    assert proof.max_abs <= 1e-4


def test_a_runtime_that_does_not_read_the_format_is_refused(stage: Stage, checkpoint: Path, tmp_path: Path) -> None:
    for runtime, reads in (("stablehlo", "stablehlo"), ("null", "no model")):
        words = ["--format", "onnx", "--runtime", runtime, "--out", str(tmp_path / "a")]
        done = stage("export", str(checkpoint), *words)
        assert done.returncode == 2
        assert done.stderr.strip() == f"error: --runtime {runtime} reads {reads}, not onnx"


def test_a_runtime_that_cannot_run_spoils_no_other(stage: Stage, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "shelf" / "openvino").mkdir(parents=True)
    (tmp_path / "shelf" / "openvino" / "__init__.py").write_text("raise ImportError('libodd.so is missing')\n")
    words = ["--format", "onnx", "--runtime", "openvino_cpu", "--out", str(tmp_path / "a")]
    done = stage("export", str(checkpoint), *words, PYTHONPATH=str(tmp_path / "shelf"))
    assert done.returncode == 0, done.stderr
    artifact = store.read_artifact(tmp_path / "a")
    proof = artifact.certificate_of("openvino_cpu")
    assert artifact.certificate.valid
    assert proof is not None
    assert not proof.valid
    assert proof.reason == "openvino_cpu cannot be imported: libodd.so is missing"
    assert "by openvino_cpu" in done.stderr
    assert "NOT valid: openvino_cpu cannot be imported" in done.stderr
