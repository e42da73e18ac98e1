"""What a certificate says of reduced precision: no limit for each score, but one for the accuracy."""

import msgspec
import numpy as np
from numpy.typing import NDArray

from medserve.certificate import LOSS
from medserve.spec import Certificate

QUANTILE = 1.96


def relax(
    proof: Certificate, scores: NDArray[np.float32], reference: NDArray[np.float32], labels: NDArray[np.int64]
) -> Certificate:
    """A float32 `proof` as one of reduced precision: valid when, with 95 % confidence, accuracy falls by less than 1 %.

    `scores` and `reference` are float32 (N, classes), `labels` int64 (N,). Errors and changed decisions stay in it.
    """
    if proof.max_abs is None:
        return msgspec.structs.replace(proof, kind="lossy", limit_abs=None)
    low, high = paired_change(scores.argmax(1) == labels, reference.argmax(1) == labels)
    reason = None
    if low <= -LOSS:
        reason = f"95 % interval of the change of accuracy [{low:.4f}, {high:.4f}]; it must lie above -{LOSS}"
    return msgspec.structs.replace(
        proof, kind="lossy", limit_abs=None, accuracy_change=(low, high), valid=reason is None, reason=reason
    )


def paired_change(right: NDArray[np.bool_], before: NDArray[np.bool_]) -> tuple[float, float]:
    """95 % interval of the share of right answers less the share that was right before, on the same images.

    The adjusted Wald interval for matched pairs (Agresti & Min, 2005): half an image more in each of the four cells.
    """
    count = len(right) + 2
    gained, lost = ((right & ~before).sum() + 0.5, (before & ~right).sum() + 0.5)
    change = (gained - lost) / count
    error = np.sqrt(gained + lost - (gained - lost) ** 2 / count) / count
    return float(change - QUANTILE * error), float(change + QUANTILE * error)
