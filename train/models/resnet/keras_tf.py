"""Residual networks in Keras, on TensorFlow."""

import keras

from medserve.models import Architecture
from train.models.layers.keras_tf import Layers
from train.models.resnet import Block, stages, stem


def block(layers: Layers, x: keras.KerasTensor, name: str, plan: Block) -> keras.KerasTensor:
    """Convolutions with batch norm, ReLU between them, and a shortcut."""
    y = x
    for index, convolution in enumerate(plan.convs, 1):
        y = layers.batch_norm(layers.conv(y, f"{name}.conv{index}", convolution), f"{name}.bn{index}")
        if convolution.activation:
            y = keras.layers.ReLU()(y)
    if plan.shortcut:
        x = layers.batch_norm(layers.conv(x, f"{name}.downsample.0", plan.shortcut), f"{name}.downsample.1")
    return keras.layers.ReLU()(keras.layers.Add()([y, x]))


def build(
    architecture: Architecture, classes: int, seed: int = 0, hidden: int = 0, drop_out: float = 0.0
) -> keras.Model:
    """See `train.models`; the layers have canonical names."""
    layers = Layers(architecture, seed)
    x = layers.conv(layers.normalised, "conv1", stem(architecture))
    x = keras.layers.ReLU()(layers.batch_norm(x, "bn1"))
    # PyTorch pads with minus infinity; after a ReLU, zero padding gives the same maximum.
    x = keras.layers.MaxPooling2D(3, 2)(keras.layers.ZeroPadding2D(1)(x))
    for index, blocks in enumerate(stages(architecture), 1):
        for place, plan in enumerate(blocks):
            x = block(layers, x, f"layer{index}.{place}", plan)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return layers.network(x, "fc", classes, hidden, drop_out)
