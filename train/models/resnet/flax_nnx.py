"""Residual networks in Flax NNX."""

import jax
import jax.numpy as jnp
from flax import nnx

from medserve.models import Architecture
from train.models import resnet
from train.models.layers.flax_nnx import Normalise, Sequential, batch_norm, conv, head


class ResNet(nnx.Module):
    """uint8 (N, H, W, C) images to float32 logits (N, classes)."""

    def __init__(
        self, architecture: Architecture, classes: int, seed: int = 0, hidden: int = 0, drop_out: float = 0.0
    ) -> None:
        rngs = nnx.Rngs(seed)
        self.normalise = Normalise(architecture)
        self.conv1 = conv(resnet.stem(architecture), rngs)
        self.bn1 = batch_norm(architecture.stem, rngs)
        self.stages = tuple(f"layer{index + 1}" for index in range(len(architecture.depths)))
        for name, blocks in zip(self.stages, resnet.stages(architecture), strict=True):
            setattr(self, name, Sequential(Block(plan, rngs) for plan in blocks))
        self.fc = head(architecture.features, classes, hidden, drop_out, rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = nnx.relu(self.bn1(self.conv1(self.normalise(images))))
        # After a ReLU, zero padding gives the same maximum as minus infinity; jax2onnx ignores the padding of pooling.
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = nnx.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding="VALID")
        for name in self.stages:
            x = getattr(self, name)(x)
        return self.fc(x.mean((1, 2)))


class Block(nnx.Module):
    """Convolutions with batch norm, ReLU between them, and a shortcut."""

    def __init__(self, plan: resnet.Block, rngs: nnx.Rngs) -> None:
        self.depth = len(plan.convs)
        for index, convolution in enumerate(plan.convs, 1):
            setattr(self, f"conv{index}", conv(convolution, rngs))
            setattr(self, f"bn{index}", batch_norm(convolution.width, rngs))
        projection = plan.shortcut and (conv(plan.shortcut, rngs), batch_norm(plan.shortcut.width, rngs))
        self.downsample = Sequential(projection or ())

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x
        for index in range(1, self.depth + 1):
            y = getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(y))
            if index < self.depth:
                y = nnx.relu(y)
        return nnx.relu(y + self.downsample(x))


build = ResNet
