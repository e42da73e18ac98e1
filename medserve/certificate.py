"""The certificate: scores of a whole test split against those that they must equal."""

import numpy as np
from numpy.typing import NDArray

from medserve.errors import BadInput
from medserve.scores import score
from medserve.spec import Certificate

LIMIT = 1e-4
TIE_MARGIN = 2e-4
LOG_FLOOR = 1e-6


def compare(
    scores: NDArray[np.float32],
    reference: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    runtime: str,
    versions: dict[str, str],
) -> Certificate:
    """The certificate of a float32 model.

    `scores` and `reference` are float32 (N, classes) probabilities, `labels` int64 (N,). Valid when the largest
    |difference| is at most 1e-4 and no decision changes where the reference's two best are more than 2e-4 apart.
    """
    if scores.shape != reference.shape:
        scores = np.full(reference.shape, np.nan, np.float32)
    max_abs = _largest(scores.astype(np.float64) - reference)
    max_log_abs = _largest(np.log(np.maximum(scores, LOG_FLOOR)) - np.log(np.maximum(reference, LOG_FLOOR)))
    best = np.sort(reference, 1)
    clear = best[:, -1] - best[:, -2] > TIE_MARGIN
    changed = int((clear & (scores.argmax(1) != reference.argmax(1))).sum())
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
        accuracy=float((scores.argmax(1) == labels).mean()),
        auc=_auc(labels, scores),
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


def _largest(gap: NDArray[np.floating]) -> float | None:
    return float(np.abs(gap).max()) if np.isfinite(gap).all() else None


def _auc(labels: NDArray[np.int64], scores: NDArray[np.float32]) -> float | None:
    try:
        return score(labels, scores).auc
    except BadInput:
        return None
