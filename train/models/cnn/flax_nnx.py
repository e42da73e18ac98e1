"""The small CNN in Flax NNX."""

import jax
import jax.numpy as jnp
from flax import nnx

from medserve.spec import Architecture
from train.models.layers.flax_nnx import Normalise, batch_norm, conv, head

REQUIRES = ("jax", "flax")


class Cnn(nnx.Module):
    """uint8 (N, H, W, C) images to float32 logits (N, classes)."""

    def __init__(self, architecture: Architecture, classes: int, hidden: int, drop_out: float, rngs: nnx.Rngs) -> None:
        self.normalise = Normalise(architecture)
        self.stages = nnx.List()
        channels = 3
        for width, depth in zip(architecture.widths, architecture.depths, strict=True):
            stage = nnx.List()
            for _ in range(depth):
                stage.append(ConvNorm(channels, width, rngs))
                channels = width
            self.stages.append(stage)
        self.fc = head(channels, classes, hidden, drop_out, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.normalise(images)
        for index, stage in enumerate(self.stages):
            if index > 0:
                x = max_pool(x)
            for layer in stage:
                x = layer(x)
        return self.fc(x.mean((1, 2)))


class ConvNorm(nnx.Module):
    """3x3 convolution, batch norm, ReLU; height and width stay the same."""

    def __init__(self, channels: int, width: int, rngs: nnx.Rngs) -> None:
        self.conv = conv(channels, width, 3, rngs=rngs)
        self.bn = batch_norm(width, rngs=rngs)

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


def build(
    architecture: Architecture, classes: int, seed: int = 0, hidden: int = 0, drop_out: float = 0.0
) -> nnx.Module:
    """The network with seeded initial weights, in training mode."""
    return Cnn(architecture, classes, hidden, drop_out, nnx.Rngs(seed))
