"""The certificate: scores of a whole test split against those that they must equal, and what they are scores of."""

import hashlib

import msgspec
import numpy as np
from numpy.typing import NDArray

from medserve.errors import BadInput
from medserve.models import Artifact, Certificate, Checkpoint, Golden, Task
from medserve.scores import decisions, macro_auc, shares_right
from medserve.spec import Precision
from medserve.tables import DATASETS, FORMATS, scores_file

LIMIT = 1e-4
TIE_MARGIN = 2e-4
LOG_FLOOR = 1e-6
LOSS = 0.01
"""Accuracy that an artifact of reduced precision may lose, by the lower end of the 95 % interval."""


def compare(
    scores: NDArray[np.float32],
    reference: NDArray[np.float32],
    labels: NDArray[np.int64] | None,
    *,
    task: Task = "multi-class",
    runtime: str,
    versions: dict[str, str],
) -> Certificate:
    """The certificate of a float32 model.

    `scores` and `reference` are float32 (N, classes) probabilities; `labels` are int64, (N, classes) where the task is
    `multi-label`, else (N,), null where none are known. Valid when the largest |difference| is at most 1e-4 and no
    decision changes where the reference's two best are more than 2e-4 apart.
    """
    if scores.shape != reference.shape:
        scores = np.full(reference.shape, np.nan, np.float32)
    max_abs = _largest(scores.astype(np.float64) - reference)
    max_log_abs = _largest(np.log(np.maximum(scores, LOG_FLOOR)) - np.log(np.maximum(reference, LOG_FLOOR)))
    clear = _clear(reference, task)
    changed = int((clear & (decisions(scores, task) != decisions(reference, task))).sum())
    reason = None
    if max_abs is None:
        reason = "the scores are not finite, or not of the trainer's shape"
    elif max_abs > LIMIT:
        reason = f"largest |difference of probabilities| is {max_abs:.2e}; the limit is {LIMIT:.0e}"
    elif changed:
        reason = f"{changed} decisions changed"
    return Certificate(
        runtime=runtime,
        images=len(reference),
        max_abs=max_abs,
        max_log_abs=max_log_abs,
        decisions_changed=changed,
        near_ties=int((~clear).sum()),
        accuracy=None if labels is None else float(shares_right(labels, scores).mean()),
        auc=None if labels is None else macro_auc(labels, scores),
        limit_abs=LIMIT,
        tie_margin=TIE_MARGIN,
        kind="float32",
        valid=reason is None,
        reason=reason,
        versions=versions,
    )


def unproven(images: int, runtime: str, reason: str) -> Certificate:
    """The certificate of a runtime that has computed nothing, and why."""
    return Certificate(
        runtime=runtime,
        images=images,
        max_abs=None,
        max_log_abs=None,
        decisions_changed=0,
        near_ties=0,
        accuracy=0.0,
        limit_abs=LIMIT,
        tie_margin=TIE_MARGIN,
        kind="float32",
        valid=False,
        reason=reason,
        versions={},
    )


def subject(
    checkpoint: Checkpoint, form: str, precision: Precision, golden: Golden, runtime: str, files: dict[str, str]
) -> str:
    """Hexadecimal SHA-256 of what a certificate is about, so that none of it can be exchanged unnoticed.

    These are the files of the version folder, the golden file and the scores by `runtime` (with their digests, from the
    manifest's `files`), the precision, the kind of golden images, and of the checkpoint its files, data set, image
    size, class names in label order, and task.
    """
    version = FORMATS[form].path.partition("/")[0] + "/"
    certified = {"golden.npz", scores_file(form, runtime)}
    listed = sorted((name, digest) for name, digest in files.items() if name in certified or name.startswith(version))
    trained = [checkpoint.dataset, checkpoint.size, checkpoint.classes, sorted(checkpoint.files.items())]
    if checkpoint.task != "multi-class":
        # A manifest without a task is of this one, and its certificates hold.
        trained.append(checkpoint.task)
    content = msgspec.json.encode((form, precision, golden, runtime, trained, listed))
    return hashlib.sha256(content).hexdigest()


def check(artifact: Artifact) -> None:
    """Raise BadInput when the class names are not the data set's, or a certificate that calls itself valid is not.

    A valid certificate keeps the limits of the artifact's precision, and is about the files and names of this manifest.
    """
    checkpoint = artifact.checkpoint
    known = DATASETS.get(checkpoint.dataset)
    if known is not None and known.class_digest not in ("", class_digest(checkpoint.classes)):
        raise BadInput(
            f"{artifact.name}: its class names are not those of {known.name} in label order; train and export it again"
        )
    for proof in artifact.certificates:
        if proof.valid and (reason := _fault(artifact, proof)):
            raise BadInput(f"{artifact.name}: its certificate for {proof.runtime} {reason}; export it again")


def class_digest(classes: tuple[str, ...]) -> str:
    """Hexadecimal SHA-256 of class names in label order."""
    return hashlib.sha256("\n".join(classes).encode()).hexdigest()


def _fault(artifact: Artifact, proof: Certificate) -> str | None:
    """What contradicts a certificate that calls itself valid, null where nothing does."""
    checkpoint, exact = artifact.checkpoint, artifact.precision == "float32"
    kind, limit = ("float32", LIMIT) if exact else ("lossy", None)
    if (proof.kind, proof.limit_abs, proof.tie_margin) != (kind, limit, TIE_MARGIN):
        return (
            f"is of kind {proof.kind}, limit {proof.limit_abs} and tie margin {proof.tie_margin}; "
            f"{artifact.precision} has {kind}, {limit} and {TIE_MARGIN}"
        )
    if proof.images != checkpoint.test.images or not proof.images:
        return f"is of {proof.images} images; the checkpoint has {checkpoint.test.images} test images"
    errors = [proof.max_abs, *([proof.golden_max_abs] if artifact.golden == "drawn" else [])]
    if not all(error is not None and 0 <= error <= (LIMIT if exact else 1) for error in errors):
        return f"calls itself valid with the largest |differences| {errors}"
    if exact and proof.decisions_changed != 0:
        return f"calls itself valid with {proof.decisions_changed} decisions changed"
    if not exact and (proof.accuracy_change is None or not proof.accuracy_change[0] > -LOSS):
        return f"calls itself valid with a change of accuracy of {proof.accuracy_change}"
    made_of = subject(checkpoint, artifact.format, artifact.precision, artifact.golden, proof.runtime, artifact.files)
    if scores_file(artifact.format, proof.runtime) not in artifact.files or proof.subject != made_of:
        return "is not about the model, golden file, scores and class names of this manifest"
    return None


def _clear(reference: NDArray[np.float32], task: Task) -> NDArray[np.bool_]:
    """Where no rounding may decide: the two best classes of an image, or p and 1 - p of a label, are far enough apart.

    As both move by at most LIMIT, a margin of twice that keeps a decision.
    """
    if task == "multi-label":
        return np.abs(2 * reference.astype(np.float64) - 1) > TIE_MARGIN
    best = np.sort(reference, 1)
    return best[:, -1] - best[:, -2] > TIE_MARGIN


def _largest(gap: NDArray[np.floating]) -> float | None:
    return float(np.abs(gap).max()) if np.isfinite(gap).all() else None
