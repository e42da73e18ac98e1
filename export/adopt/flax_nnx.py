"""StableHLO of `jax.export`: a function around the call has the way in and out."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from export.adopt import Found, only, takes
from export.frameworks import flax_nnx
from medserve.errors import BadInput
from medserve.models import Contract

REQUIRES = ("jax",)
READS = (".stablehlo", ".jax")
WRITES = ("stablehlo",)


def inspect(path: Path, _output: str = "") -> Found:
    """See `export.adopt`."""
    exported = _load(path)
    inputs = [f"argument {place}" for place in range(len(exported.in_avals))]
    name = only(path, "input", inputs)
    out = only(path, "output", [f"result {place}" for place in range(len(exported.out_avals))])
    given, last = exported.in_avals[0], exported.out_avals[0].shape
    shape = tuple(side if isinstance(side, int) else None for side in given.shape)
    return Found(name, out, shape, takes(path, given.dtype.name), int(last[-1]), 0)


def scores(path: Path, _contract: Contract, x: NDArray[np.float32] | NDArray[np.uint8]) -> NDArray[np.float32]:
    """See `export.adopt`."""
    (given,) = jax.tree.leaves(_load(path).call(x))
    return np.asarray(given).reshape(len(x), -1).astype(np.float32)


def write(path: Path, contract: Contract, form: str, out: Path) -> None:
    """See `export.adopt`."""
    exported = _load(path)

    def classifier(image: jax.Array) -> jax.Array:
        x = image
        if contract.takes == "float32":
            x = x.astype(jnp.float32) * jnp.array(contract.factor) - jnp.array(contract.offset)
        if contract.layout == "nchw":
            x = x.transpose(0, 3, 1, 2)
        (y,) = jax.tree.leaves(exported.call(x))
        y = y.reshape(image.shape[0], contract.outputs)
        if contract.gives == "logits":
            y = jax.nn.sigmoid(y) if contract.activation == "sigmoid" else jax.nn.softmax(y)
        return jnp.concatenate([1 - y, y], 1) if contract.outputs == 1 else y

    shape = contract.size, contract.size, contract.channels
    flax_nnx.write(classifier, shape, form, out, platforms=exported.platforms)


def _load(path: Path) -> jax.export.Exported:
    try:
        return jax.export.deserialize(bytearray(path.read_bytes()))
    except Exception as error:  # flatbuffers raise anything over other bytes
        raise BadInput(f"{path}: no program of jax.export: {str(error)[:300]}") from None
