"""Keras layers that bear canonical names: kernels change their layout, batch norm its words."""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
from numpy.typing import NDArray

from medserve.errors import BadInput

REQUIRES = ("tensorflow", "keras")

WORDS = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
# By the number of dimensions: (H, W, I, O) of a convolution, (I, O) of a dense layer; and back.
TO_CANONICAL = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}
FROM_CANONICAL = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}


def read(network: keras.Model) -> dict[str, NDArray[np.float32]]:
    """Canonical weights of a network, copied to the host."""
    return {
        name: np.array(variable.numpy().transpose(TO_CANONICAL[variable.ndim]), order="C")
        for name, variable in _variables(network).items()
    }


def write(network: keras.Model, weights: dict[str, NDArray[np.float32]]) -> None:
    """Put canonical weights into a network. Raises BadInput that lists the first names and shapes that do not fit."""
    variables = _variables(network)
    shapes = {
        name: tuple(variable.shape[axis] for axis in TO_CANONICAL[variable.ndim])
        for name, variable in variables.items()
    }
    wrong = sorted(
        name
        for name in shapes.keys() | weights.keys()
        if name not in shapes or name not in weights or shapes[name] != weights[name].shape
    )
    if wrong:
        raise BadInput(f"weights do not fit the network; first differences: {', '.join(wrong[:5])}")
    for name, variable in variables.items():
        variable.assign(weights[name].transpose(FROM_CANONICAL[variable.ndim]))


def _variables(network: keras.Model) -> dict[str, keras.Variable]:
    found = {}
    for variable in network.weights:
        layer, _, word = variable.path.rpartition("/")
        found[f"{layer.replace('/', '.')}.{WORDS[word]}"] = variable
    return found
