"""The small CNN in Keras, on TensorFlow."""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras

from medserve.spec import Architecture
from train.models.layers.keras_tf import batch_norm, conv, head, normalise

REQUIRES = ("tensorflow", "keras")


def conv_norm(x: keras.KerasTensor, width: int, name: str, seeds: keras.random.SeedGenerator) -> keras.KerasTensor:
    """3x3 convolution, batch norm, ReLU; height and width stay the same."""
    x = batch_norm(conv(x, width, 3, name=f"{name}.conv", seeds=seeds), name=f"{name}.bn")
    return keras.layers.ReLU()(x)


def build(
    architecture: Architecture, classes: int, seed: int = 0, hidden: int = 0, drop_out: float = 0.0
) -> keras.Model:
    """The network with seeded initial weights; its layers have canonical names."""
    seeds = keras.random.SeedGenerator(seed)
    images = keras.Input((None, None, 3), dtype="uint8", name="image")
    x = normalise(images, architecture)
    for index, (width, depth) in enumerate(zip(architecture.widths, architecture.depths, strict=True)):
        if index > 0:
            x = keras.layers.MaxPooling2D(2)(x)
        for place in range(depth):
            x = conv_norm(x, width, f"stages.{index}.{place}", seeds)
    x = keras.layers.GlobalAveragePooling2D()(x)
    logits = head(x, classes, hidden, drop_out, seed << 16, name="fc", seeds=seeds)
    return keras.Model(images, logits, name=architecture.name)
