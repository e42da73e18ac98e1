"""What is expected of an adopted model's own scores: its labels, a reference, and the classes in its order."""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.adopt._images import Given
from medserve.certificate import LIMIT
from medserve.errors import BadInput
from medserve.scores import macro_auc, shares_right

CHANCE = 0.5
"""The AUC of scores that do not depend on the image."""
QUANTILE = 1.96
"""The two-sided 95 % quantile of the standard normal distribution."""


def check(
    model: Path,
    scores: NDArray[np.float32],
    given: Given,
    names: tuple[str, ...],
    reference: Path | None,
    anyway: bool,
) -> None:
    """Raise BadInput when the scores of the file are not those that are expected of it."""
    count, found = scores.shape
    if len(names) != found:
        raise BadInput(f"{model}: gives scores of {found} classes, and there are {len(names)}: {', '.join(names[:8])}")
    hint = "is it prepared as it was trained? see --window, --layout, --scale, --mean, --std, --gives and --classes"
    if reference is not None:
        expected = np.load(reference, allow_pickle=False)
        if expected.shape != scores.shape:
            raise BadInput(f"{reference}: {expected.shape}; expected {scores.shape}, a row per image")
        error = float(np.abs(expected - scores).max())
        if not error <= LIMIT:
            row = int(np.abs(expected - scores).max(1).argmax())
            raise BadInput(f"{model}: differs from {reference.name} by {error:.2e} (image {row}); {hint}")
    if given.labels is None:
        return
    several = given.labels.ndim == 2
    if several and given.labels.shape != scores.shape:
        raise BadInput(f"labels of shape {given.labels.shape}; {model} gives scores of shape {scores.shape}")
    if several and not np.isin(given.labels, (0, 1)).all():
        raise BadInput(f"labels hold {given.labels.min()} to {given.labels.max()}; expected 0 or 1 per class")
    if not several and (given.labels.min() < 0 or given.labels.max() >= found):
        raise BadInput(
            f"label {given.labels.min()} or {given.labels.max()}: the model has the classes 0 to {found - 1}"
        )
    if several:
        # Where frequent and rare labels weigh alike in training, the accuracy may be below that of constant answers.
        if (area := macro_auc(given.labels, scores)) is not None and area < CHANCE and not anyway:
            raise BadInput(f"{model}: AUC {area:.3f}, below chance; {hint}; --anyway adopts it all the same")
        return
    share = float(shares_right(given.labels, scores).mean())
    commonest = _commonest(given.labels, found)
    # Of the normal approximation: a model that is better than that in truth is very rarely refused.
    above = share + QUANTILE * np.sqrt(commonest * (1 - commonest) / count)
    if above < commonest and not anyway:
        words = beside_commonest(share, given.labels, found, 1)
        raise BadInput(f"{model}: {words}; {hint}; --anyway adopts it all the same")
    if share <= commonest:
        print(f"{model}: no better than the commonest class; {hint}", file=sys.stderr)


def in_order(given: Given, names: tuple[str, ...]) -> Given:
    """The images with their labels in the order of the `names`. Raises BadInput for other names than the folders'."""
    assert given.classes is not None
    assert given.labels is not None
    if set(names) != set(given.classes):
        folders = ", ".join(given.classes)
        raise BadInput(f"--classes {','.join(names)}: the images lie in the folders {folders}; give the same names")
    places = np.array([names.index(name) for name in given.classes])
    return given._replace(labels=places[given.labels], classes=names)


def _commonest(labels: NDArray[np.int64], classes: int) -> float:
    """The share of the commonest class; with several labels per image, of each label's commoner value, their mean."""
    if labels.ndim == 2:
        having = labels.mean(0)
        return float(np.maximum(having, 1 - having).mean())
    return float(np.bincount(labels, minlength=classes).max() / len(labels))


def beside_commonest(share: float, labels: NDArray[np.int64], classes: int, digits: int) -> str:
    """An accuracy in words, beside that of the answer that no image changes."""
    of, always = f"{len(labels)} images", "the commonest class alone"
    if labels.ndim == 2:
        of, always = f"{labels.size} labels of {len(labels)} images", "the commoner value of each alone"
    commonest = _commonest(labels, classes)
    return f"right on {share * 100:.{digits}f} % of {of}, where {always} has {commonest * 100:.{digits}f} %"
