"""Residual networks in Keras, on TensorFlow."""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
from keras.random import SeedGenerator

from medserve.spec import Architecture
from train.models.layers.keras_tf import batch_norm, conv, head, normalise

REQUIRES = ("tensorflow", "keras")


def basic_block(x: keras.KerasTensor, width: int, stride: int, *, name: str, seeds: SeedGenerator) -> keras.KerasTensor:
    """Two 3x3 convolutions with a shortcut."""
    y = batch_norm(conv(x, width, 3, stride, name=f"{name}.conv1", seeds=seeds), name=f"{name}.bn1")
    y = keras.layers.ReLU()(y)
    y = batch_norm(conv(y, width, 3, name=f"{name}.conv2", seeds=seeds), name=f"{name}.bn2")
    return keras.layers.ReLU()(keras.layers.Add()([y, shortcut(x, width, stride, name=name, seeds=seeds)]))


def bottleneck(
    x: keras.KerasTensor,
    width: int,
    expansion: int,
    stride: int,
    stride_first: bool,
    *,
    name: str,
    seeds: SeedGenerator,
) -> keras.KerasTensor:
    """1x1, 3x3 and 1x1 convolutions with a shortcut; the last convolution expands the width."""
    first, second = (stride, 1) if stride_first else (1, stride)
    y = batch_norm(conv(x, width, 1, first, name=f"{name}.conv1", seeds=seeds), name=f"{name}.bn1")
    y = keras.layers.ReLU()(y)
    y = batch_norm(conv(y, width, 3, second, name=f"{name}.conv2", seeds=seeds), name=f"{name}.bn2")
    y = keras.layers.ReLU()(y)
    y = batch_norm(conv(y, width * expansion, 1, name=f"{name}.conv3", seeds=seeds), name=f"{name}.bn3")
    x = shortcut(x, width * expansion, stride, name=name, seeds=seeds)
    return keras.layers.ReLU()(keras.layers.Add()([y, x]))


def shortcut(x: keras.KerasTensor, width: int, stride: int, *, name: str, seeds: SeedGenerator) -> keras.KerasTensor:
    """The input if the output has the same shape, else a 1x1 convolution and batch norm of it."""
    if stride == 1 and x.shape[-1] == width:
        return x
    x = conv(x, width, 1, stride, name=f"{name}.downsample.0", seeds=seeds)
    return batch_norm(x, name=f"{name}.downsample.1")


def build(
    architecture: Architecture, classes: int, seed: int = 0, hidden: int = 0, drop_out: float = 0.0
) -> keras.Model:
    """The network with seeded initial weights; its layers have canonical names."""
    seeds = SeedGenerator(seed)
    images = keras.Input((None, None, 3), dtype="uint8", name="image")
    x = conv(normalise(images, architecture), architecture.stem, 7, 2, name="conv1", seeds=seeds)
    x = keras.layers.ReLU()(batch_norm(x, name="bn1"))
    # PyTorch pads with minus infinity; after a ReLU, zero padding gives the same maximum.
    x = keras.layers.MaxPooling2D(3, 2)(keras.layers.ZeroPadding2D(1)(x))
    for index, (width, depth, stride, expansion) in enumerate(architecture.stages()):
        for place in range(depth):
            name = f"layer{index + 1}.{place}"
            first = stride if place == 0 else 1
            if expansion == 1:
                x = basic_block(x, width, first, name=name, seeds=seeds)
            else:
                x = bottleneck(x, width, expansion, first, architecture.stride_first, name=name, seeds=seeds)
    x = keras.layers.GlobalAveragePooling2D()(x)
    logits = head(x, classes, hidden, drop_out, seed << 16, name="fc", seeds=seeds)
    return keras.Model(images, logits, name=architecture.name)
