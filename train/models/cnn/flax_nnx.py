"""The small CNN in Flax NNX."""

import jax
import jax.numpy as jnp
from flax import nnx

from medserve.models import Architecture
from train.models import Conv
from train.models.cnn import stages
from train.models.layers.flax_nnx import Normalise, Sequential, batch_norm, conv, head


class Cnn(nnx.Module):
    """uint8 (N, H, W, C) images to float32 logits (N, classes)."""

    def __init__(
        self, architecture: Architecture, classes: int, seed: int = 0, hidden: int = 0, drop_out: float = 0.0
    ) -> None:
        rngs = nnx.Rngs(seed)
        self.normalise = Normalise(architecture)
        self.stages = nnx.List(Sequential(ConvNorm(plan, rngs) for plan in stage) for stage in stages(architecture))
        self.fc = head(architecture.features, classes, hidden, drop_out, rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.normalise(images)
        for index, stage in enumerate(self.stages):
            x = stage(max_pool(x) if index else x)
        return self.fc(x.mean((1, 2)))


class ConvNorm(nnx.Module):
    """3x3 convolution, batch norm, ReLU; height and width stay the same."""

    def __init__(self, plan: Conv, rngs: nnx.Rngs) -> None:
        self.conv = conv(plan, rngs)
        self.bn = batch_norm(plan.width, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.relu(self.bn(self.conv(x)))


@jax.custom_vjp
def max_pool(x: jax.Array) -> jax.Array:
    """2x2 maximum, (N, H, W, C) to (N, H // 2, W // 2, C). Of equal values the first, row by row, gets the gradient."""
    return nnx.max_pool(x, window_shape=(2, 2), strides=(2, 2), padding="VALID")


def _pairwise_max_pool(x: jax.Array) -> jax.Array:
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    left, right = x[:, :height, 0:width:2], x[:, :height, 1:width:2]
    x = jnp.where(left >= right, left, right)
    top, bottom = x[:, 0::2], x[:, 1::2]
    return jnp.where(top >= bottom, top, bottom)


# XLA computes the gradient of a pooling window by a scatter through index arrays, a fifth of a training step on a CPU.
# As two elementwise comparisons the same gradient takes no measurable time.
max_pool.defvjp(
    lambda x: (max_pool(x), x),
    lambda x, gradient: jax.vjp(_pairwise_max_pool, x)[1](gradient),
)


build = Cnn
