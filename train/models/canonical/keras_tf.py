"""Canonical weights of Keras networks, whose layers have canonical names: kernel layouts and array names differ."""

import keras
import numpy as np
from numpy.typing import NDArray

from train.models.canonical import TO_CANONICAL, Arrays, Axes, from_canonical, to_canonical

REQUIRES = ("tensorflow", "keras")

NAMES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
# A depthwise kernel is (H, W, C, 1).
DEPTHWISE_TO_CANONICAL = (2, 3, 0, 1)


def read(network: keras.Model) -> Arrays:
    """See `train.models.canonical`."""
    return to_canonical(_variables(network))


def write(network: keras.Model, weights: Arrays) -> None:
    """See `train.models.canonical`."""
    for variable, value in from_canonical(_variables(network), weights):
        variable.assign(value)


def outputs(network: keras.Model, images: NDArray[np.uint8]) -> Arrays:
    """See `train.models.canonical`."""
    layers = {layer.name: layer.output for layer in network.layers if layer.weights}
    values = keras.Model(network.input, layers)(images, training=False)
    return {name: np.moveaxis(value.numpy(), -1, 1) for name, value in values.items()}


def _variables(network: keras.Model) -> dict[str, tuple[keras.Variable, Axes]]:
    variables = {}
    for layer in network.layers:
        for variable in layer.weights:
            name, _, array = variable.path.rpartition("/")
            axes = TO_CANONICAL[variable.ndim]
            if isinstance(layer, keras.layers.DepthwiseConv2D) and array == "kernel":
                axes = DEPTHWISE_TO_CANONICAL
            variables[f"{name.replace('/', '.')}.{NAMES[array]}"] = (variable, axes)
    return variables
