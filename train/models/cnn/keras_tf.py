"""The small CNN in Keras, on TensorFlow."""

import keras

from medserve.models import Architecture
from train.models.cnn import stages
from train.models.layers.keras_tf import Layers


def build(
    architecture: Architecture, classes: int, seed: int = 0, hidden: int = 0, drop_out: float = 0.0
) -> keras.Model:
    """See `train.models`; the layers have canonical names."""
    layers = Layers(architecture, seed)
    x = layers.normalised
    for index, stage in enumerate(stages(architecture)):
        if index > 0:
            x = keras.layers.MaxPooling2D(2)(x)
        for place, plan in enumerate(stage):
            name = f"stages.{index}.{place}"
            x = keras.layers.ReLU()(layers.batch_norm(layers.conv(x, f"{name}.conv", plan), f"{name}.bn"))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return layers.network(x, "fc", classes, hidden, drop_out)
