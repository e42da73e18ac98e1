"""The scores of a split, the same for all frameworks and equal to those of the `medmnist` package's Evaluator."""

import numpy as np
from numpy.typing import NDArray

from medserve.errors import BadInput
from medserve.models import Scores, Task

THRESHOLD = 0.5
"""Above this probability a label is decided to apply, as in MedMNIST's evaluator."""


def score(labels: NDArray[np.int64], probabilities: NDArray[np.float32]) -> Scores:
    """Accuracy, balanced accuracy and macro AUC, as MedMNIST v2 (Yang et al., 2023) defines the first and the last.

    `probabilities` are float32 (n, classes). `labels` are int64 (n,) with one label per image: accuracy is the share of
    images, balanced accuracy the mean recall of the classes. With several labels per image they are 0 or 1, int64
    (n, classes): accuracy is the share of right decisions over all labels of all images, balanced accuracy the mean
    over the labels of the mean of sensitivity and specificity. The AUC is the unweighted mean over classes or labels.
    Raises BadInput for other shapes, for values that are not finite, and for a class that no image or every image has,
    whose AUC is undefined.
    """
    several = labels.ndim == 2
    if probabilities.ndim != 2 or not labels.size or labels.shape != probabilities.shape[: 1 + several]:
        expected = "(n, classes) for (n, classes)" if several else "(n, classes) for (n,)"
        raise BadInput(f"scores of shape {probabilities.shape} for {labels.shape} labels; expected {expected}")
    if not np.isfinite(probabilities).all():
        raise BadInput(f"scores of image {np.flatnonzero(~np.isfinite(probabilities).all(1))[0]} are not finite")
    recalls, areas = [], []
    correct = _correct(labels, probabilities)
    for column in range(probabilities.shape[1]):
        of_class = labels[:, column] == 1 if several else labels == column
        if not 0 < of_class.sum() < len(labels):
            raise BadInput(f"class {column} has {of_class.sum()} of {len(labels)} images; its AUC is undefined")
        if several:
            recalls += [correct[side, column].mean() for side in (of_class, ~of_class)]
        else:
            recalls.append(correct[of_class].mean())
        areas.append(_area(of_class, probabilities[:, column]))
    return Scores(
        accuracy=float(correct.mean()),
        balanced_accuracy=float(np.mean(recalls)),
        auc=float(np.mean(areas)),
        images=len(labels),
    )


def macro_auc(labels: NDArray[np.int64], probabilities: NDArray[np.float32]) -> float | None:
    """The AUC of `score`, null where it is undefined."""
    try:
        return score(labels, probabilities).auc
    except BadInput:
        return None


def decisions(probabilities: NDArray[np.float32], task: Task) -> NDArray[np.int64]:
    """What float32 (n, classes) probabilities decide, int64: each image's class, (n,); or each label, (n, classes)."""
    if task == "multi-label":
        return (probabilities > THRESHOLD).astype(np.int64)
    best: NDArray[np.int64] = probabilities.argmax(1)
    return best


def shares_right(labels: NDArray[np.int64], probabilities: NDArray[np.float32]) -> NDArray[np.float64]:
    """The share of right decisions in each image, float64 (n,); with one label per image it is 0 or 1.

    Their mean is the accuracy. Shapes are those of `score`.
    """
    shares: NDArray[np.float64] = _correct(labels, probabilities).reshape(len(labels), -1).mean(1)
    return shares


def paired_change(right: NDArray[np.float64], before: NDArray[np.float64]) -> tuple[float, float]:
    """The mean share of right decisions per image less the one before, on the same images, and its standard error.

    Adjusted for matched pairs (Agresti & Min, 2005): half an image more in each of the four cells. With several labels
    per image, the labels of an image are a cluster: only the images are taken to be independent.
    """
    count, changes = len(right) + 2, right - before
    change = float(changes.sum()) / count
    return change, float(np.sqrt(max(0.0, ((changes**2).sum() + 1) / count - change**2) / count))


def _correct(labels: NDArray[np.int64], probabilities: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether each decision is right, in the shape of the labels."""
    correct: NDArray[np.bool_] = (
        decisions(probabilities, "multi-label" if labels.ndim == 2 else "multi-class") == labels
    )
    return correct


def _area(positive: NDArray[np.bool_], scores: NDArray[np.float32]) -> float:
    """Area under the ROC curve from ranks (Mann & Whitney, 1947); equal scores share their mean rank."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positives = int(positive.sum())
    negatives = len(positive) - positives
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))
