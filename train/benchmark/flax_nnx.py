"""The plain loop in Flax NNX: a jitted step on a model and its optimiser."""

from collections.abc import Callable

import jax
import numpy as np
import optax
from flax import nnx
from numpy.typing import NDArray

from medserve.models import Recipe


@nnx.jit
def _step(network: nnx.Module, optimiser: nnx.Optimizer, images: jax.Array, labels: jax.Array) -> jax.Array:
    def loss_of(network: nnx.Module) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(network(images), labels).mean()

    loss, gradients = nnx.value_and_grad(loss_of)(network)
    optimiser.update(network, gradients)
    return loss


def plain(
    network: nnx.Module, images: NDArray[np.uint8], labels: NDArray[np.int64], recipe: Recipe
) -> Callable[[], object]:
    """See `train.benchmark`."""
    optimiser = nnx.Optimizer(
        network, optax.adamw(recipe.learning_rate, weight_decay=recipe.weight_decay), wrt=nnx.Param
    )
    rng = np.random.default_rng(recipe.seed)

    def epoch() -> None:
        order = rng.permutation(len(images))
        steps = len(images) // recipe.batch
        for chosen in order[: steps * recipe.batch].reshape(steps, recipe.batch):
            float(_step(network, optimiser, images[chosen], labels[chosen]))

    return epoch
