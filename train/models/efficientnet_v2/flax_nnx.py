"""EfficientNetV2 in Flax NNX."""

from collections.abc import Callable

import jax
from flax import nnx

from medserve.models import Architecture
from train.models import Conv, efficientnet_v2
from train.models.efficientnet_v2 import EPSILON, Squeeze, stages
from train.models.layers.flax_nnx import Normalise, Sequential, batch_norm, conv, head, stochastic_depth


class EfficientNetV2(nnx.Module):
    """uint8 (N, H, W, C) images to float32 logits (N, classes)."""

    def __init__(
        self, architecture: Architecture, classes: int, seed: int = 0, hidden: int = 0, drop_out: float = 0.0
    ) -> None:
        rngs = nnx.Rngs(seed)
        self.normalise = Normalise(architecture)
        stem = conv_norm(efficientnet_v2.stem(architecture), rngs)
        body = [Sequential(Block(plan, rngs) for plan in blocks) for blocks in stages(architecture)]
        top = conv_norm(Conv(architecture.widths[-1], architecture.features, 1), rngs)
        self.features = Sequential([stem, *body, top])
        last = head(architecture.features, classes, hidden, drop_out, rngs)
        self.classifier = Sequential([nnx.Dropout(architecture.drop_out, rngs=rngs), last])

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.features(self.normalise(images))
        return self.classifier(x.mean((1, 2)))


class Block(nnx.Module):
    """The layers of a block, with a residual connection if input and output have the same shape."""

    def __init__(self, plan: efficientnet_v2.Block, rngs: nnx.Rngs) -> None:
        self.block = Sequential(
            conv_norm(layer, rngs) if isinstance(layer, Conv) else SqueezeExcitation(layer, rngs)
            for layer in plan.layers
        )
        self.residual = plan.residual
        self.stochastic_depth = stochastic_depth(plan.rate, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.block(x)
        return x + self.stochastic_depth(y) if self.residual else y


class SqueezeExcitation(nnx.Module):
    """See `Squeeze`."""

    def __init__(self, plan: Squeeze, rngs: nnx.Rngs) -> None:
        self.fc1, self.fc2 = (conv(convolution, rngs) for convolution in plan)

    def __call__(self, x: jax.Array) -> jax.Array:
        weights = nnx.silu(self.fc1(x.mean((1, 2), keepdims=True)))
        return x * nnx.sigmoid(self.fc2(weights))


def conv_norm(plan: Conv, rngs: nnx.Rngs) -> Sequential:
    """Convolution, batch norm, SiLU."""
    layers: list[Callable[[jax.Array], jax.Array]] = [conv(plan, rngs), batch_norm(plan.width, rngs, EPSILON)]
    return Sequential([*layers, nnx.silu] if plan.activation else layers)


build = EfficientNetV2
