"""One file per framework: REQUIRES (modules) and `create(architecture, classes, recipe, rates, initial, task)`.

`create` returns a trainer that starts from `initial`, its random weights seeded; `rates` holds one learning rate per
step. A trainer computes one step and one prediction; `train.loop` does the rest for all of them: batches, augmentation,
epochs, scores, checkpoints. The loss is the mean cross-entropy of a softmax over the classes, with label smoothing; for
the task `multi-label` the binary cross-entropy of a sigmoid per label, averaged over labels and images; smoothing by s
makes y (1 - s) + s / 2 of a label y. The optimiser is AdamW: betas 0.9 and 0.999, epsilon 1e-8 outside the bias
correction, weight decay decoupled and multiplied by the step's learning rate, no weight decay on batch norm and biases.
"""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol
from zlib import crc32

import msgspec
import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from medserve import plugins
from medserve.models import Architecture, Recipe, Task
from medserve.store import write_bytes

Weights = dict[str, NDArray[np.float32]]
Rates = NDArray[np.float32]


class InitialState(msgspec.Struct, frozen=True):
    """The state in which a training starts.

    Canonical `weights` replace the random ones; without any, all weights are random. They may leave out the head.
    `class_weights`, float32 (classes,), multiply the loss of each image by the weight of its class. With several labels
    per image they are float32 (2, classes): the weights of each label where it is 0, and where it is 1. Null means 1.
    """

    class_weights: NDArray[np.float32] | None = None
    weights: Mapping[str, NDArray[np.float32]] = {}

    def loss_weights(self, classes: int, task: Task) -> NDArray[np.float32]:
        """The weights of the loss, in the shape of `class_weights`."""
        shape = (2, classes) if task == "multi-label" else (classes,)
        return np.ones(shape, np.float32) if self.class_weights is None else self.class_weights


COMMON = "common"
"""A recipe's `initial`: random weights that do not depend on the framework."""
RANDOM = InitialState()
"""All weights random, all classes weighted alike."""


def build(
    framework: str, architecture: Architecture, classes: int, recipe: Recipe, initial: InitialState = RANDOM
) -> tuple[Any, ModuleType]:
    """The network with the weights that a training starts with, and the framework's module of canonical weights.

    Raises BadInput that lists the first weights of `initial` that do not fit.
    """
    canonical = plugins.load("train.models.canonical", framework)
    family = plugins.load(f"train.models.{architecture.family}", framework)
    network = family.build(architecture, classes, recipe.seed, recipe.hidden, recipe.drop_out)
    if recipe.initial == COMMON:
        canonical.write(network, _drawn(canonical.read(network), recipe.seed))
    if initial.weights:
        random = canonical.read(network).items()
        head = {name: value for name, value in random if name.startswith(f"{architecture.head}.")}
        canonical.write(network, head | dict(initial.weights))
    return network, canonical


def _drawn(weights: Weights, seed: int) -> Weights:
    """Canonical weights drawn by NumPy, by the convention of `train.models`: the same ones in every framework."""
    drawn = dict(weights)
    for name, value in weights.items():
        if value.ndim > 1:
            deviation = np.sqrt(2.0 / (value.shape[0] * value[0, 0].size)) if value.ndim == 4 else 0.01
            generator = np.random.default_rng([seed, crc32(name.encode())])
            drawn[name] = generator.normal(0.0, deviation, value.shape).astype(np.float32)
    return drawn


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

        `images` are uint8 (N, H, W, C), `labels` int64 (N,), or 0 or 1 (N, classes) with several labels per image.
        """

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities, float32 (N, classes), of uint8 (N, H, W, C) images, in evaluation mode."""

    def weights(self) -> Weights:
        """The current canonical weights."""

    def state(self) -> dict[str, NDArray[Any]]:
        """What a resumed training needs beside the weights: the optimiser's state and the step."""

    def restore(self, weights: Weights, state: dict[str, NDArray[Any]]) -> None:
        """Continue from `weights` and `state`; the next step gives the same result as without the interruption."""


def save(trainer: Trainer, folder: Path) -> None:
    """Write `weights.safetensors` (canonical) and `resume.safetensors` (what else a resumed training needs)."""
    for name, arrays in (("weights", trainer.weights()), ("resume", trainer.state())):
        # safetensors reads the memory as it lies.
        ordered = {key: np.array(value, order="C") for key, value in arrays.items()}
        write_bytes(folder / f"{name}.safetensors", safetensors.numpy.save(ordered))


def restore(trainer: Trainer, folder: Path) -> None:
    """Give a trainer what `save` wrote."""
    trainer.restore(*(safetensors.numpy.load_file(folder / f"{name}.safetensors") for name in ("weights", "resume")))
