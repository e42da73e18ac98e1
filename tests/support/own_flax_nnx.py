"""What tests of networks do by Flax's and JAX's own means."""

import math
from collections.abc import Iterator

import jax
import numpy as np
import optax
from flax import nnx
from jax.extend.core import Jaxpr, jaxprs_in_params
from numpy.typing import NDArray

from medserve import plugins
from medserve.models import Architecture
from train.models.layers import flax_nnx as layers


def steps(network: nnx.Module, images: NDArray[np.uint8], labels: NDArray[np.int64], rate: float) -> None:
    """One step of plain SGD on each of `images`, uint8 (steps, N, H, W, C), and `labels`, (steps, N)."""

    @nnx.jit
    def step(network: nnx.Module, optimiser: nnx.Optimizer, batch: jax.Array, targets: jax.Array) -> None:
        def loss(network: nnx.Module) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(network(batch), targets).mean()

        optimiser.update(network, nnx.grad(loss)(network))

    network.train()
    optimiser = nnx.Optimizer(network, optax.sgd(rate), wrt=nnx.Param)
    for batch, targets in zip(images, labels, strict=True):
        step(network, optimiser, batch, targets)


def count(architecture: Architecture, classes: int) -> tuple[int, int]:
    """Trainable numbers, and multiply-adds of one image of 224 px; nothing is computed, no memory taken."""
    build = plugins.load(f"train.models.{architecture.family}", "flax_nnx").build
    network = nnx.eval_shape(lambda: build(architecture, classes))
    network.eval()
    graph, state = nnx.split(network)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), np.uint8)
    traced = jax.make_jaxpr(lambda state, images: nnx.merge(graph, state)(images))(state, images)
    parameters = jax.tree.leaves(nnx.state(network, nnx.Param))
    return sum(math.prod(value.shape) for value in parameters), sum(_multiply_adds(traced.jaxpr))


def _multiply_adds(jaxpr: Jaxpr) -> Iterator[int]:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            output_axis = equation.params["dimension_numbers"].rhs_spec[0]
            yield math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // kernel[output_axis]
        elif equation.primitive.name == "dot_general":
            kernel = equation.invars[1].aval.shape
            (_, contracted), _ = equation.params["dimension_numbers"]
            yield math.prod(equation.outvars[0].aval.shape) * math.prod(kernel[axis] for axis in contracted)
        for inner in jaxprs_in_params(equation.params):
            yield from _multiply_adds(inner)


def stochastic_depth(rate: float, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Stochastic depth in training, of float32 (N, H, W, C)."""
    return np.array(layers.stochastic_depth(rate, nnx.Rngs(0))(x))
