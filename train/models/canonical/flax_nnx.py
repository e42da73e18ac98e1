"""Flax keeps kernels as (H, W, I, O) and (I, O), and has its own names for the arrays.

Without axes, `transpose` turns a matrix round and leaves a vector as it is: only images' kernels need them named.
"""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import NDArray

from medserve.errors import BadInput

REQUIRES = ("jax", "flax")

NAMES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def read(network: nnx.Module) -> dict[str, NDArray[np.float32]]:
    """Canonical weights of a network, copied to the host."""
    return {name: _canonical(np.array(variable[...])) for name, variable in _variables(network).items()}


def write(network: nnx.Module, weights: dict[str, NDArray[np.float32]]) -> None:
    """Put canonical weights into a network. Raises BadInput that lists the first names and shapes that do not fit."""
    variables = _variables(network)
    wrong = sorted(
        name
        for name in variables.keys() | weights.keys()
        if name not in variables or name not in weights or _native(weights[name]).shape != variables[name].shape
    )
    if wrong:
        raise BadInput(f"weights do not fit the network; first differences: {', '.join(wrong[:5])}")
    for name, variable in variables.items():
        variable[...] = jnp.array(_native(weights[name]))


def _variables(network: nnx.Module) -> dict[str, nnx.Variable]:
    state = nnx.state(network, (nnx.Param, nnx.BatchStat))
    return {".".join(map(str, (*path[:-1], NAMES[path[-1]]))): value for path, value in nnx.to_flat_state(state)}


def _canonical(value: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.ascontiguousarray(value.transpose((3, 2, 0, 1) if value.ndim == 4 else None))


def _native(value: NDArray[np.float32]) -> NDArray[np.float32]:
    return value.transpose((2, 3, 1, 0) if value.ndim == 4 else None)
