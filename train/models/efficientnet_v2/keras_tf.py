"""EfficientNetV2 in Keras, on TensorFlow."""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

from itertools import count

import keras
from keras.random import SeedGenerator

from medserve.spec import Architecture
from train.models.layers.keras_tf import batch_norm, conv, depthwise_conv, head, normalise, stochastic_depth

REQUIRES = ("tensorflow", "keras")

EPSILON = 1e-3


def fused_block(
    x: keras.KerasTensor, width: int, expansion: int, stride: int, *, name: str, seeds: SeedGenerator
) -> keras.KerasTensor:
    """A 3x3 convolution that expands the channels and a 1x1 that projects them; without expansion a single 3x3."""
    if expansion == 1:
        return conv_norm(x, width, 3, stride, name=f"{name}.block.0", seeds=seeds)
    x = conv_norm(x, x.shape[-1] * expansion, 3, stride, name=f"{name}.block.0", seeds=seeds)
    return conv_norm(x, width, 1, activation=False, name=f"{name}.block.1", seeds=seeds)


def block(
    x: keras.KerasTensor, width: int, expansion: int, stride: int, *, name: str, seeds: SeedGenerator
) -> keras.KerasTensor:
    """1x1 convolution that expands the channels, depthwise 3x3, squeeze-and-excitation, 1x1 that projects them."""
    squeezed = max(1, x.shape[-1] // 4)
    x = conv_norm(x, x.shape[-1] * expansion, 1, name=f"{name}.block.0", seeds=seeds)
    x = depthwise_conv(x, 3, stride, name=f"{name}.block.1.0", seeds=seeds)
    x = keras.layers.Activation("silu")(batch_norm(x, epsilon=EPSILON, name=f"{name}.block.1.1"))
    x = squeeze_excitation(x, squeezed, name=f"{name}.block.2", seeds=seeds)
    return conv_norm(x, width, 1, activation=False, name=f"{name}.block.3", seeds=seeds)


def squeeze_excitation(x: keras.KerasTensor, squeezed: int, *, name: str, seeds: SeedGenerator) -> keras.KerasTensor:
    """Squeeze-and-excitation (Hu et al., 2018): scales each channel by a function of all channel averages."""
    weights = keras.layers.GlobalAveragePooling2D(keepdims=True)(x)
    weights = conv(weights, squeezed, 1, bias=True, name=f"{name}.fc1", seeds=seeds)
    weights = keras.layers.Activation("silu")(weights)
    weights = conv(weights, x.shape[-1], 1, bias=True, name=f"{name}.fc2", seeds=seeds)
    return keras.layers.Multiply()([x, keras.layers.Activation("sigmoid")(weights)])


def conv_norm(
    x: keras.KerasTensor,
    width: int,
    kernel: int,
    stride: int = 1,
    *,
    activation: bool = True,
    name: str,
    seeds: SeedGenerator,
) -> keras.KerasTensor:
    """Convolution, batch norm, SiLU."""
    x = conv(x, width, kernel, stride, name=f"{name}.0", seeds=seeds)
    x = batch_norm(x, epsilon=EPSILON, name=f"{name}.1")
    return keras.layers.Activation("silu")(x) if activation else x


def build(
    architecture: Architecture, classes: int, seed: int = 0, hidden: int = 0, drop_out: float = 0.0
) -> keras.Model:
    """The network with seeded initial weights; its layers have canonical names."""
    seeds = SeedGenerator(seed)
    # Each drop-out layer needs its own seed.
    drop_seeds = count(seed << 16)
    images = keras.Input((None, None, 3), dtype="uint8", name="image")
    x = conv_norm(normalise(images, architecture), architecture.stem, 3, 2, name="features.0", seeds=seeds)
    rates = architecture.drop_rates()
    for index, (width, depth, stride, expansion) in enumerate(architecture.stages()):
        for place in range(depth):
            make = fused_block if index < architecture.fused else block
            name = f"features.{index + 1}.{place}"
            y = make(x, width, expansion, stride if place == 0 else 1, name=name, seeds=seeds)
            rate = next(rates)
            if y.shape[-1] == x.shape[-1] and (stride == 1 or place > 0):
                y = keras.layers.Add()([x, stochastic_depth(y, rate, next(drop_seeds), name=name)])
            x = y
    x = conv_norm(x, architecture.features, 1, name=f"features.{len(architecture.depths) + 1}", seeds=seeds)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dropout(architecture.drop_out, seed=next(drop_seeds), name="classifier.0")(x)
    logits = head(x, classes, hidden, drop_out, next(drop_seeds), name="classifier.1", seeds=seeds)
    return keras.Model(images, logits, name=architecture.name)
