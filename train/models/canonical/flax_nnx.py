"""Canonical weights of Flax networks: kernels are (H, W, I, O), depthwise (H, W, 1, C), dense (I, O) in Flax."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import NDArray

from train.models.canonical import TO_CANONICAL, Arrays, Axes, from_canonical, to_canonical

REQUIRES = ("jax", "flax")

NAMES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def read(network: nnx.Module) -> Arrays:
    """See `train.models.canonical`."""
    return to_canonical({name: (value[...], axes) for name, (value, axes) in _variables(network).items()})


def write(network: nnx.Module, weights: Arrays) -> None:
    """See `train.models.canonical`."""
    for variable, value in from_canonical(_variables(network), weights):
        variable[...] = jnp.array(value)


def outputs(network: nnx.Module, images: NDArray[np.uint8]) -> Arrays:
    """See `train.models.canonical`."""
    # A copy, because evaluation mode and captured outputs stay in the modules.
    copied = nnx.clone(network)
    copied.eval()
    graph, state = nnx.split(copied)

    @jax.jit
    def run(state: nnx.State, images: jax.Array) -> dict[str, jax.Array]:
        capturing = nnx.capture(nnx.merge(graph, state), nnx.Intermediate, method_outputs=nnx.Intermediate)
        _, captured = capturing(images)
        return {".".join(map(str, path[:-1])): value.get_value()[0] for path, value in nnx.to_flat_state(captured)}

    values = run(state, images)
    layers = {name.rpartition(".")[0] for name in _variables(network)}
    # JAX sorts a dictionary by its keys, a module keeps its layers in the order in which they were added.
    return {name: np.moveaxis(np.array(values[name]), -1, 1) for name in _modules(network) if name in layers}


def _modules(module: nnx.Module, above: str = "") -> Iterator[str]:
    """The names of all modules below one, in the order in which they were added."""
    for name, below in vars(module).items():
        if isinstance(below, nnx.Module):
            yield above + name
            yield from _modules(below, f"{above}{name}.")


def _variables(network: nnx.Module) -> dict[str, tuple[nnx.Variable, Axes]]:
    state = nnx.to_flat_state(nnx.state(network, (nnx.Param, nnx.BatchStat)))
    return {
        ".".join(map(str, (*path[:-1], NAMES[path[-1]]))): (value, TO_CANONICAL[value.ndim]) for path, value in state
    }
