"""One file a framework: REQUIRES (modules) and `create(architecture, classes, recipe, learning_rates, begin)`.

What all trainers share is not here but in `train.loop`: batches, augmentation, epochs, scores, checkpoints. A trainer
knows one step and one prediction. The loss is the mean cross-entropy with label smoothing; the optimiser is AdamW with
betas 0.9 and 0.999, epsilon 1e-8 outside the bias correction, decoupled decay times the rate of the step, none on batch
norm and biases.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from medserve.spec import Architecture, Recipe


class Begin(msgspec.Struct, frozen=True):
    """What a training begins with: canonical `weights` that take the place of those drawn; a network may have more.

    `class_weights`, float32 (classes,), multiply the losses of the images of a class; null leaves all alike.
    """

    class_weights: NDArray[np.float32] | None = None
    weights: Mapping[str, NDArray[np.float32]] = {}


DRAWN = Begin()


def first_weights(
    drawn: Mapping[str, NDArray[np.float32]], begin: Begin, architecture: Architecture
) -> dict[str, NDArray[np.float32]]:
    """All canonical weights that a training begins with: the drawn ones, or those given; a head may still be drawn.

    What is missing or too much among the given ones is left so: the network refuses it, rather than mix it with drawn.
    """
    if not begin.weights:
        return dict(drawn)
    head = {name: value for name, value in drawn.items() if name.startswith(f"{architecture.head}.")}
    return head | dict(begin.weights)


def learns(architecture: Architecture, recipe: Recipe, name: str) -> bool:
    """Whether a layer or a weight of this canonical name is trained."""
    layers: tuple[str, ...] = () if recipe.trains == "all" else (architecture.head,)
    if recipe.trains == "last stage":
        layers += architecture.last_stage
    return not layers or any(f"{name}.".startswith(f"{layer}.") for layer in layers)


class Trainer(Protocol):
    """One network in training."""

    parameters: int
    """Numbers of the network that can be trained, whether they are or not; batch statistics are none."""

    def step(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
        """One optimiser step on uint8 (N, H, W, C) images at the next rate of `learning_rates`. Returns the loss."""

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities, float32 (N, classes), in evaluation mode."""

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """Canonical weights as they are now."""

    def save(self, folder: Path) -> None:
        """Write `weights.safetensors` (canonical) and `resume.safetensors` (optimiser state, step) into `folder`."""

    def restore(self, folder: Path) -> None:
        """Go on from what `save` wrote; the next step gives what it would have given without the interruption."""
