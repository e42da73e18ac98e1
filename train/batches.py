"""Training batches: order and augmentation drawn once in NumPy, so that every framework sees the same bytes.

All that is random in an epoch follows from (seed, epoch), so a resumed training needs no random state. The last,
incomplete batch of an epoch is left out: every step has one shape, and the leavings differ from epoch to epoch.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from medserve.spec import Recipe
from train.data import Dataset

Batch = tuple[NDArray[np.uint8], NDArray[np.int64]]


def batches(data: Dataset, recipe: Recipe, epoch: int) -> Iterator[Batch]:
    """Batches of the training split: images uint8 (batch, H, W, 3), labels int64 (batch,). `epoch` counts from 0."""
    labels = data.labels("train")
    rng = np.random.Generator(np.random.PCG64([recipe.seed, epoch]))
    used = len(labels) // recipe.batch * recipe.batch
    order = rng.permutation(len(labels))[:used].reshape(-1, recipe.batch)
    # Each is drawn whether the recipe wants it or not, so that leaving one out does not change the others.
    flips = rng.integers(0, 2, (2, *order.shape), np.uint8).astype(bool) & recipe.flips
    transposes = rng.integers(0, 2, order.shape, np.uint8).astype(bool) & recipe.transposes
    shifts = rng.integers(-recipe.shift, recipe.shift + 1, (2, *order.shape))

    def make(step: int) -> Batch:
        chosen = order[step]
        images = data.take("train", chosen)
        return augment(images, flips[:, step], transposes[step], shifts[:, step]), labels[chosen]

    # One batch ahead, in a thread: NumPy and the frameworks both leave the interpreter to others while they compute.
    with ThreadPoolExecutor(1) as ahead:
        following = ahead.submit(make, 0)
        for step in range(len(order)):
            batch = following.result()
            if step + 1 < len(order):
                following = ahead.submit(make, step + 1)
            yield batch


def augment(
    images: NDArray[np.uint8], flips: NDArray[np.bool_], transposes: NDArray[np.bool_], shifts: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Transposed, flipped, then shifted copies of square uint8 (n, S, S, C) `images`.

    `flips` is (2, n): upside down, left to right; `shifts` is (2, n): pixels down, pixels right. What a shift uncovers
    shows the image mirrored about its outermost pixel.
    """
    count, size, _, channels = images.shape
    rows, columns = (_sources(size, flips[axis], shifts[axis]) for axis in range(2))
    # One gather does it all: where each pixel comes from in the flat list of pixels.
    down = np.where(transposes, 1, size)[:, None]
    right = np.where(transposes, size, 1)[:, None]
    origin = np.arange(count)[:, None] * size * size
    source = (rows * down + origin)[:, :, None] + (columns * right)[:, None, :]
    shown: NDArray[np.uint8] = images.reshape(-1, channels).take(source, axis=0, mode="clip")
    return shown


def _sources(size: int, flip: NDArray[np.bool_], shift: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n, size): the source line of each line along one axis."""
    line = np.abs(np.arange(size) - shift[:, None])
    line = np.minimum(line, 2 * (size - 1) - line)
    source: NDArray[np.int64] = np.where(flip[:, None], size - 1 - line, line)
    return source
