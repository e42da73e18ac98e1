"""The scores of a split, the same for all frameworks and equal to those of the `medmnist` package's Evaluator."""

import numpy as np
from numpy.typing import NDArray

from medserve.errors import BadInput
from medserve.models import Scores


def score(labels: NDArray[np.int64], probabilities: NDArray[np.float32]) -> Scores:
    """Accuracy, balanced accuracy (mean recall) and macro one-vs-rest AUC.

    `labels` are int64 (n,), `probabilities` float32 (n, classes). The AUC is that of MedMNIST v2 (Yang et al., 2023):
    the unweighted mean over the classes. Raises BadInput for other shapes, for values that are not finite, and for a
    class with no image or with all images, whose AUC is undefined.
    """
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not labels.size:
        raise BadInput(
            f"scores of shape {probabilities.shape} for {labels.shape} labels; expected (n, classes) for (n,)"
        )
    if not np.isfinite(probabilities).all():
        raise BadInput(f"scores of image {np.flatnonzero(~np.isfinite(probabilities).all(1))[0]} are not finite")
    correct = probabilities.argmax(1) == labels
    recalls, areas = [], []
    for column in range(probabilities.shape[1]):
        of_class = labels == column
        if not 0 < of_class.sum() < len(labels):
            raise BadInput(f"class {column} has {of_class.sum()} of {len(labels)} images; its AUC is undefined")
        recalls.append(correct[of_class].mean())
        areas.append(_area(of_class, probabilities[:, column]))
    return Scores(
        accuracy=float(correct.mean()),
        balanced_accuracy=float(np.mean(recalls)),
        auc=float(np.mean(areas)),
        images=len(labels),
    )


def _area(positive: NDArray[np.bool_], scores: NDArray[np.float32]) -> float:
    """Area under the ROC curve from ranks (Mann & Whitney, 1947); equal scores share their mean rank."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positives = int(positive.sum())
    negatives = len(positive) - positives
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))
