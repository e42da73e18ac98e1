"""EfficientNetV2 in Keras, on TensorFlow."""

import keras

from medserve.models import Architecture
from train.models import Conv
from train.models.efficientnet_v2 import EPSILON, Squeeze, stages, stem
from train.models.layers.keras_tf import Layers


def add(layers: Layers, x: keras.KerasTensor, name: str, plan: Conv | Squeeze) -> keras.KerasTensor:
    """Convolution, batch norm, SiLU; or squeeze-and-excitation."""
    if isinstance(plan, Conv):
        x = layers.batch_norm(layers.conv(x, f"{name}.0", plan), f"{name}.1", EPSILON)
        return keras.layers.Activation("silu")(x) if plan.activation else x
    weights = keras.layers.GlobalAveragePooling2D(keepdims=True)(x)
    weights = keras.layers.Activation("silu")(layers.conv(weights, f"{name}.fc1", plan.reduce))
    weights = keras.layers.Activation("sigmoid")(layers.conv(weights, f"{name}.fc2", plan.expand))
    return keras.layers.Multiply()([x, weights])


def build(
    architecture: Architecture, classes: int, seed: int = 0, hidden: int = 0, drop_out: float = 0.0
) -> keras.Model:
    """See `train.models`; the layers have canonical names."""
    layers = Layers(architecture, seed)
    x = add(layers, layers.normalised, "features.0", stem(architecture))
    for index, blocks in enumerate(stages(architecture), 1):
        for place, plan in enumerate(blocks):
            name, y = f"features.{index}.{place}", x
            for at, layer in enumerate(plan.layers):
                y = add(layers, y, f"{name}.block.{at}", layer)
            if plan.residual:
                y = keras.layers.Add()([x, layers.stochastic_depth(y, f"{name}.stochastic_depth", plan.rate)])
            x = y
    top = Conv(architecture.widths[-1], architecture.features, 1)
    x = add(layers, x, f"features.{len(architecture.depths) + 1}", top)
    x = layers.drop_out(keras.layers.GlobalAveragePooling2D()(x), "classifier.0", architecture.drop_out)
    return layers.network(x, "classifier.1", classes, hidden, drop_out)
