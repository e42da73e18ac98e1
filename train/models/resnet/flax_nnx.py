"""Residual networks in Flax NNX."""

import jax
import jax.numpy as jnp
from flax import nnx

from medserve.spec import Architecture
from train.models.layers.flax_nnx import Normalise, batch_norm, conv, head

REQUIRES = ("jax", "flax")


class ResNet(nnx.Module):
    """uint8 (N, H, W, C) images to float32 logits (N, classes)."""

    def __init__(self, architecture: Architecture, classes: int, hidden: int, drop_out: float, rngs: nnx.Rngs) -> None:
        self.normalise = Normalise(architecture)
        self.conv1 = conv(3, architecture.stem, 7, stride=2, rngs=rngs)
        self.bn1 = batch_norm(architecture.stem, rngs=rngs)
        channels = architecture.stem
        for index, (width, depth, stride, expansion) in enumerate(architecture.stages()):
            stage = nnx.List()
            for place in range(depth):
                first = stride if place == 0 else 1
                if expansion == 1:
                    stage.append(BasicBlock(channels, width, first, rngs))
                else:
                    stage.append(Bottleneck(channels, width, expansion, first, architecture.stride_first, rngs))
                channels = width * expansion
            setattr(self, f"layer{index + 1}", stage)
        self.stages = len(architecture.depths)
        self.fc = head(channels, classes, hidden, drop_out, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = nnx.relu(self.bn1(self.conv1(self.normalise(images))))
        # After a ReLU, zero padding gives the same maximum as minus infinity; jax2onnx ignores the padding of pooling.
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = nnx.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding="VALID")
        for index in range(self.stages):
            for block in getattr(self, f"layer{index + 1}"):
                x = block(x)
        return self.fc(x.mean((1, 2)))


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions with a shortcut."""

    def __init__(self, channels: int, width: int, stride: int, rngs: nnx.Rngs) -> None:
        self.conv1 = conv(channels, width, 3, stride, rngs=rngs)
        self.bn1 = batch_norm(width, rngs=rngs)
        self.conv2 = conv(width, width, 3, rngs=rngs)
        self.bn2 = batch_norm(width, rngs=rngs)
        self.downsample = projection(channels, width, stride, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        for layer in self.downsample:
            x = layer(x)
        return nnx.relu(y + x)


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut; the last convolution expands the width."""

    def __init__(
        self, channels: int, width: int, expansion: int, stride: int, stride_first: bool, rngs: nnx.Rngs
    ) -> None:
        self.conv1 = conv(channels, width, 1, stride if stride_first else 1, rngs=rngs)
        self.bn1 = batch_norm(width, rngs=rngs)
        self.conv2 = conv(width, width, 3, 1 if stride_first else stride, rngs=rngs)
        self.bn2 = batch_norm(width, rngs=rngs)
        self.conv3 = conv(width, width * expansion, 1, rngs=rngs)
        self.bn3 = batch_norm(width * expansion, rngs=rngs)
        self.downsample = projection(channels, width * expansion, stride, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = nnx.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        for layer in self.downsample:
            x = layer(x)
        return nnx.relu(y + x)


def projection(channels: int, width: int, stride: int, rngs: nnx.Rngs) -> nnx.List:
    """The shortcut: empty if input and output have the same shape, else a 1x1 convolution and batch norm."""
    if stride == 1 and channels == width:
        return nnx.List()
    return nnx.List([conv(channels, width, 1, stride, rngs=rngs), batch_norm(width, rngs=rngs)])


def build(
    architecture: Architecture, classes: int, seed: int = 0, hidden: int = 0, drop_out: float = 0.0
) -> nnx.Module:
    """The network with seeded initial weights, in training mode."""
    return ResNet(architecture, classes, hidden, drop_out, nnx.Rngs(seed))
