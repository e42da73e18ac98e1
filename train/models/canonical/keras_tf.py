"""Keras layers that bear canonical names: kernels change their layout, batch norm its words."""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
from numpy.typing import NDArray

from train.models.canonical import check_fit

REQUIRES = ("tensorflow", "keras")

WORDS = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
# By the number of dimensions: (H, W, I, O) of a convolution, (I, O) of a dense layer.
TO_CANONICAL = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}
# (H, W, C, 1), where all others have (H, W, 1, C).
DEPTHWISE_TO_CANONICAL = (2, 3, 0, 1)


def read(network: keras.Model) -> dict[str, NDArray[np.float32]]:
    """Canonical weights of a network, copied to the host."""
    return {
        name: np.array(variable.numpy().transpose(axes), order="C")
        for name, (variable, axes) in _variables(network).items()
    }


def write(network: keras.Model, weights: dict[str, NDArray[np.float32]]) -> None:
    """Put canonical weights into a network. Raises BadInput that lists the first names and shapes that do not fit."""
    variables = _variables(network)
    shapes = {name: tuple(variable.shape[axis] for axis in axes) for name, (variable, axes) in variables.items()}
    check_fit(shapes, weights)
    for name, (variable, axes) in variables.items():
        variable.assign(weights[name].transpose(np.argsort(axes)))


def outputs(network: keras.Model, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """What every layer with weights gives in evaluation mode, under its canonical name, as (N, C, H, W) or (N, C)."""
    layers = {layer.name: layer.output for layer in network.layers if layer.weights}
    found = keras.Model(network.input, layers)(images, training=False)
    return {name: np.moveaxis(value.numpy(), -1, 1) for name, value in found.items()}


def _variables(network: keras.Model) -> dict[str, tuple[keras.Variable, tuple[int, ...]]]:
    found = {}
    for layer in network.layers:
        for variable in layer.weights:
            name, _, word = variable.path.rpartition("/")
            axes = TO_CANONICAL[variable.ndim]
            if isinstance(layer, keras.layers.DepthwiseConv2D) and word == "kernel":
                axes = DEPTHWISE_TO_CANONICAL
            found[f"{name.replace('/', '.')}.{WORDS[word]}"] = (variable, axes)
    return found
