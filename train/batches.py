"""Training batches. NumPy draws order and augmentation, so that every framework trains on the same bytes.

All random numbers of an epoch depend on (seed, epoch) only, so resuming a training needs no saved random state. The
last, incomplete batch of an epoch is left out, so that all batches have the same shape; which images it holds differs
between epochs.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from medserve.models import Recipe
from train.data import Dataset

Batch = tuple[NDArray[np.uint8], NDArray[np.int64]]


def batches(data: Dataset, recipe: Recipe, epoch: int) -> Iterator[Batch]:
    """Batches of the training split: uint8 (batch, H, W, C) images, int64 (batch,) or (batch, classes) labels.

    `epoch` counts from 0.
    """
    labels = data.labels("train")
    rng = np.random.Generator(np.random.PCG64([recipe.seed, epoch]))
    used = len(labels) // recipe.batch * recipe.batch
    order = rng.permutation(len(labels))[:used].reshape(-1, recipe.batch)
    # Drawn even if the recipe disables an augmentation, so that disabling it does not change the others.
    flips = rng.integers(0, 2, (2, *order.shape), np.uint8).astype(bool) & recipe.flips
    transposes = rng.integers(0, 2, order.shape, np.uint8).astype(bool) & recipe.transposes
    shifts = rng.integers(-recipe.shift, recipe.shift + 1, (2, *order.shape))

    def make(step: int) -> Batch:
        chosen = order[step]
        images = data.take("train", chosen)
        return augment(images, flips[:, step], transposes[step], shifts[:, step]), labels[chosen]

    # A thread prepares the next batch; NumPy and the frameworks release the interpreter lock while they compute.
    with ThreadPoolExecutor(1) as executor:
        upcoming = executor.submit(make, 0)
        for step in range(len(order)):
            batch = upcoming.result()
            if step + 1 < len(order):
                upcoming = executor.submit(make, step + 1)
            yield batch


def augment(
    images: NDArray[np.uint8], flips: NDArray[np.bool_], transposes: NDArray[np.bool_], shifts: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Transposed, flipped, then shifted copies of square images, uint8 (n, S, S, C).

    `flips` is (2, n): upside down, left to right; `shifts` is (2, n): pixels down, pixels right. A shift fills the
    uncovered pixels with the image mirrored about its outermost pixel.
    """
    count, size, _, channels = images.shape
    rows, columns = (_sources(size, flips[axis], shifts[axis]) for axis in range(2))
    # A single gather: the index of each source pixel in the flattened list of pixels.
    down = np.where(transposes, 1, size)[:, None]
    right = np.where(transposes, size, 1)[:, None]
    origin = np.arange(count)[:, None] * size * size
    source = (rows * down + origin)[:, :, None] + (columns * right)[:, None, :]
    augmented: NDArray[np.uint8] = images.reshape(-1, channels).take(source, axis=0, mode="clip")
    return augmented


def _sources(size: int, flip: NDArray[np.bool_], shift: NDArray[np.int64]) -> NDArray[np.int64]:
    """Source row (or column) of each row (or column) of the augmented image, int64 (n, size)."""
    line = np.abs(np.arange(size) - shift[:, None])
    line = np.minimum(line, 2 * (size - 1) - line)
    source: NDArray[np.int64] = np.where(flip[:, None], size - 1 - line, line)
    return source
