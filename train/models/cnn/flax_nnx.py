"""The small CNN in Flax NNX."""

import jax
import jax.numpy as jnp
from flax import nnx

from medserve.spec import Architecture

REQUIRES = ("jax", "flax")


class Cnn(nnx.Module):
    """uint8 (N, H, W, C) images to float32 logits (N, classes)."""

    def __init__(self, architecture: Architecture, classes: int, rngs: nnx.Rngs) -> None:
        self.mean = architecture.mean
        self.std = architecture.std
        self.stages = nnx.List()
        channels = 3
        for width, depth in zip(architecture.widths, architecture.depths, strict=True):
            stage = nnx.List()
            for _ in range(depth):
                stage.append(ConvNorm(channels, width, rngs))
                channels = width
            self.stages.append(stage)
        self.fc = nnx.Linear(channels, classes, kernel_init=nnx.initializers.normal(0.01), rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = (images.astype(jnp.float32) / 255.0 - jnp.array(self.mean)) / jnp.array(self.std)
        for index, stage in enumerate(self.stages):
            if index > 0:
                x = max_pool(x)
            for layer in stage:
                x = layer(x)
        return self.fc(x.mean((1, 2)))


class ConvNorm(nnx.Module):
    """3x3 convolution, batch norm, ReLU; the image keeps its size."""

    def __init__(self, channels: int, width: int, rngs: nnx.Rngs) -> None:
        he_normal = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
        self.conv = nnx.Conv(
            channels, width, (3, 3), padding=((1, 1), (1, 1)), use_bias=False, kernel_init=he_normal, rngs=rngs
        )
        self.bn = BatchNorm(width, momentum=0.9, epsilon=1e-5, use_fast_variance=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.relu(self.bn(self.conv(x)))


class BatchNorm(nnx.BatchNorm):
    """NNX's batch norm with PyTorch's running variance, the unbiased one."""

    def __call__(self, x: jax.Array) -> jax.Array:
        before = self.var[...]
        y = super().__call__(x)
        if not self.use_running_average:
            added = self.var[...] - self.momentum * before
            # n / (n - 1) of what the batch added, as a correction: the large part keeps its rounding.
            self.var[...] += added / (x.size // x.shape[-1] - 1)
        return y


@jax.custom_vjp
def max_pool(x: jax.Array) -> jax.Array:
    """2x2 maximum, (N, H, W, C) to (N, H // 2, W // 2, C); among equals the gradient goes to the first, row by row."""
    return nnx.max_pool(x, window_shape=(2, 2), strides=(2, 2), padding="VALID")


def _pairwise_max_pool(x: jax.Array) -> jax.Array:
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    left, right = x[:, :height, 0:width:2], x[:, :height, 1:width:2]
    x = jnp.where(left >= right, left, right)
    top, bottom = x[:, 0::2], x[:, 1::2]
    return jnp.where(top >= bottom, top, bottom)


# XLA writes the gradient of a pooling window as a scatter through index arrays, which on a CPU is a fifth of the whole
# training step. The same gradient of two comparisons is elementwise and costs nothing that can be measured.
max_pool.defvjp(
    lambda x: (max_pool(x), x),
    lambda x, gradient: jax.vjp(_pairwise_max_pool, x)[1](gradient),
)


def build(architecture: Architecture, classes: int, seed: int = 0) -> nnx.Module:
    """The network with seeded initial weights, in training mode."""
    return Cnn(architecture, classes, nnx.Rngs(seed))
