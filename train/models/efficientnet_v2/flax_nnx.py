"""EfficientNetV2 in Flax NNX."""

import jax
from flax import nnx

from medserve.spec import Architecture
from train.models.layers.flax_nnx import Normalise, batch_norm, conv, head, stochastic_depth

REQUIRES = ("jax", "flax")

EPSILON = 1e-3


class EfficientNetV2(nnx.Module):
    """uint8 (N, H, W, C) images to float32 logits (N, classes)."""

    def __init__(self, architecture: Architecture, classes: int, hidden: int, drop_out: float, rngs: nnx.Rngs) -> None:
        self.normalise = Normalise(architecture)
        self.features = nnx.List([conv_norm(3, architecture.stem, 3, stride=2, rngs=rngs)])
        channels, rates = architecture.stem, architecture.drop_rates()
        for index, (width, depth, stride, expansion) in enumerate(architecture.stages()):
            stage = nnx.List()
            for place in range(depth):
                make = fused_block if index < architecture.fused else block
                stage.append(make(channels, width, expansion, stride if place == 0 else 1, next(rates), rngs))
                channels = width
            self.features.append(stage)
        self.features.append(conv_norm(channels, architecture.features, 1, rngs=rngs))
        last = head(architecture.features, classes, hidden, drop_out, rngs=rngs)
        self.classifier = nnx.List([nnx.Dropout(architecture.drop_out, rngs=rngs), last])

    def __call__(self, images: jax.Array) -> jax.Array:
        x = run(self.features, self.normalise(images))
        return run(self.classifier, x.mean((1, 2)))


class Residual(nnx.Module):
    """The layers of a block, with a residual connection if input and output have the same shape."""

    def __init__(self, block: nnx.List, shortcut: bool, rate: float, rngs: nnx.Rngs) -> None:
        self.block = block
        self.shortcut = shortcut
        self.stochastic_depth = stochastic_depth(rate, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = run(self.block, x)
        return x + self.stochastic_depth(y) if self.shortcut else y


def fused_block(channels: int, width: int, expansion: int, stride: int, rate: float, rngs: nnx.Rngs) -> Residual:
    """A 3x3 convolution that expands the channels and a 1x1 that projects them; without expansion a single 3x3."""
    wide = channels * expansion
    if expansion == 1:
        layers = nnx.List([conv_norm(channels, width, 3, stride, rngs=rngs)])
    else:
        widen = conv_norm(channels, wide, 3, stride, rngs=rngs)
        layers = nnx.List([widen, conv_norm(wide, width, 1, activation=False, rngs=rngs)])
    return Residual(layers, stride == 1 and channels == width, rate, rngs)


def block(channels: int, width: int, expansion: int, stride: int, rate: float, rngs: nnx.Rngs) -> Residual:
    """1x1 convolution that expands the channels, depthwise 3x3, squeeze-and-excitation, 1x1 that projects them."""
    wide = channels * expansion
    layers = nnx.List(
        [
            conv_norm(channels, wide, 1, rngs=rngs),
            conv_norm(wide, wide, 3, stride, groups=wide, rngs=rngs),
            SqueezeExcitation(wide, max(1, channels // 4), rngs),
            conv_norm(wide, width, 1, activation=False, rngs=rngs),
        ]
    )
    return Residual(layers, stride == 1 and channels == width, rate, rngs)


class SqueezeExcitation(nnx.Module):
    """Squeeze-and-excitation (Hu et al., 2018): scales each channel by a function of all channel averages."""

    def __init__(self, channels: int, squeezed: int, rngs: nnx.Rngs) -> None:
        self.fc1 = conv(channels, squeezed, 1, bias=True, rngs=rngs)
        self.fc2 = conv(squeezed, channels, 1, bias=True, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        weights = nnx.silu(self.fc1(x.mean((1, 2), keepdims=True)))
        return x * nnx.sigmoid(self.fc2(weights))


def run(layers: nnx.List, x: jax.Array) -> jax.Array:
    """Apply layers in sequence; a layer may be a list of layers."""
    for layer in layers:
        # DenseHead is a list as well, but has its own call.
        x = run(layer, x) if type(layer) is nnx.List else layer(x)
    return x


def conv_norm(
    channels: int,
    width: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    activation: bool = True,
    *,
    rngs: nnx.Rngs,
) -> nnx.List:
    """Convolution, batch norm, SiLU."""
    layers = [conv(channels, width, kernel, stride, groups, rngs=rngs), batch_norm(width, EPSILON, rngs=rngs)]
    return nnx.List([*layers, nnx.silu] if activation else layers)


def build(
    architecture: Architecture, classes: int, seed: int = 0, hidden: int = 0, drop_out: float = 0.0
) -> nnx.Module:
    """The network with seeded initial weights, in training mode."""
    return EfficientNetV2(architecture, classes, hidden, drop_out, nnx.Rngs(seed))
