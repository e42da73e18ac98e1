"""`golden.npz`: images and the trainer's scores of them, with which a server checks itself before it is ready.

The images are of the test split, or drawn where those must not leave their owner. Drawn ones are scored by the
checkpoint's own network in the framework that trained it, in a process of its own (`python -m export.golden`).
"""

from pathlib import Path

import numpy as np
import typer
from numpy.typing import NDArray
from safetensors.numpy import load_file

from medserve import errors, plugins, store
from medserve.errors import BadInput

IMAGES = 32
SEED = 20_260
GRIDS = (2, 4, 8, 16)
"""Points along the side of the random fields that a drawn image is the sum of, the coarsest with the largest share."""


def write_test(folder: Path, checkpoint: Path, data: Path) -> None:
    """Write 32 images of the test split, evenly spread, with the scores that the trainer gave them.

    Raises BadInput when the checkpoint has not as many scores as there are images.
    """
    images: NDArray[np.uint8] = np.load(data / "test_images.npy", mmap_mode="r")
    scores = np.load(checkpoint / "test_scores.npy")
    if len(images) != len(scores):
        raise BadInput(f"{checkpoint}: {len(scores)} test scores for {len(images)} test images; train it again")
    chosen = np.linspace(0, len(images) - 1, min(IMAGES, len(images))).astype(int)
    np.savez(folder / "golden.npz", images=images[chosen], scores=scores[chosen])


def write_drawn(folder: Path, checkpoint: Path) -> None:
    """Write 32 drawn images into FOLDER, with the scores that the network of CHECKPOINT gives them.

    All checkpoints of an image size have the same images.
    """
    manifest = store.read_checkpoint(checkpoint)
    images = draw(IMAGES, manifest.size)[..., : manifest.channels]
    exporter = plugins.load("export.frameworks", manifest.framework)
    scores = exporter.scores(manifest, load_file(checkpoint / "weights.safetensors"), images)
    np.savez(folder / "golden.npz", images=images, scores=scores)


def draw(count: int, size: int) -> NDArray[np.uint8]:
    """Smooth random fields in colour, uint8 (count, size, size, 3): structure at several scales, as in a photograph."""
    rng = np.random.Generator(np.random.PCG64([SEED, size]))
    field = np.zeros((count, size, size, 3))
    for grid in GRIDS:
        # Linear interpolation between the points of a coarse grid, as a product of matrices.
        place = np.linspace(0, grid - 1, size)
        weight = np.maximum(0, 1 - np.abs(place[:, None] - np.arange(grid)))
        field += 2 / grid * np.einsum("yi,nijc,xj->nyxc", weight, rng.standard_normal((count, grid, grid, 3)), weight)
    contrast, light = rng.uniform(20, 80, (count, 1, 1, 1)), rng.uniform(60, 200, (count, 1, 1, 3))
    return np.rint(np.clip(light + contrast * field, 0, 255)).astype(np.uint8)


if __name__ == "__main__":
    errors.main(lambda: typer.run(write_drawn))
