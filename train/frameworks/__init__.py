"""One file per framework: REQUIRES (modules) and `create(architecture, classes, recipe, learning_rates, initial)`.

A trainer computes one step and one prediction; `train.loop` does the rest for all of them: batches, augmentation,
epochs, scores, checkpoints. The loss is the mean cross-entropy with label smoothing. The optimiser is AdamW: betas 0.9
and 0.999, epsilon 1e-8 outside the bias correction, weight decay decoupled and multiplied by the step's learning rate,
no weight decay on batch norm and biases.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from medserve.spec import Architecture, Recipe


class InitialState(msgspec.Struct, frozen=True):
    """The state in which a training starts.

    Canonical `weights` replace the random ones; without any, all weights are random. They may leave out the head.
    `class_weights`, float32 (classes,), multiply the loss of each image by the weight of its class; null means 1.
    """

    class_weights: NDArray[np.float32] | None = None
    weights: Mapping[str, NDArray[np.float32]] = {}


RANDOM = InitialState()
"""All weights random, all classes weighted alike."""


def first_weights(
    random: Mapping[str, NDArray[np.float32]], initial: InitialState, architecture: Architecture
) -> dict[str, NDArray[np.float32]]:
    """The canonical weights that a training starts with: `random`, or those of `initial` with a random head if missing.

    Weights of `initial` that do not fit are returned as they are: the network refuses them with a list of mismatches.
    """
    if not initial.weights:
        return dict(random)
    head = {name: value for name, value in random.items() if name.startswith(f"{architecture.head}.")}
    return head | dict(initial.weights)


def is_trained(architecture: Architecture, recipe: Recipe, name: str) -> bool:
    """Whether the recipe trains the layer or weight with this canonical name."""
    layers: tuple[str, ...] = () if recipe.trains == "all" else (architecture.head,)
    if recipe.trains == "last stage":
        layers += architecture.last_stage
    return not layers or any(f"{name}.".startswith(f"{layer}.") for layer in layers)


class Trainer(Protocol):
    """A network in training."""

    parameters: int
    """Number of trainable parameters, frozen ones included; batch-norm statistics do not count."""

    def step(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
        """Take one optimiser step at the next of `learning_rates`; returns the loss.

        `images` are uint8 (N, H, W, C), `labels` int64 (N,).
        """

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities, float32 (N, classes), of uint8 (N, H, W, C) images, in evaluation mode."""

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """The current canonical weights."""

    def save(self, folder: Path) -> None:
        """Write `weights.safetensors` (canonical) and `resume.safetensors` (optimiser state, step) into `folder`."""

    def restore(self, folder: Path) -> None:
        """Load what `save` wrote; the next step gives the same result as without the interruption."""
