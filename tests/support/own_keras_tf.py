"""What tests of networks do by Keras's and TensorFlow's own means."""

import math
import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from medserve import plugins
from medserve.models import Architecture
from medserve.tables import ARCHITECTURES
from train.models.layers import keras_tf as layers


def steps(network: keras.Model, images: NDArray[np.uint8], labels: NDArray[np.int64], rate: float) -> None:
    """One step of plain SGD on each of `images`, uint8 (steps, N, H, W, C), and `labels`, (steps, N)."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.SGD(rate), loss, jit_compile=False)
    for batch, targets in zip(images, labels, strict=True):
        network.train_on_batch(batch, targets)


def count(architecture: Architecture, classes: int) -> tuple[int, int]:
    """Trainable numbers, and multiply-adds of one image of 224 px; nothing is computed, no memory taken."""
    with keras.StatelessScope(initialize_variables=False):
        network = plugins.load(f"train.models.{architecture.family}", "keras_tf").build(architecture, classes)
        traced = tf.function(network, autograph=False).get_concrete_function(tf.TensorSpec((1, 224, 224, 3), tf.uint8))
    # The kernel's dimensions whose products one output sums up.
    summed = {"Conv2D": slice(0, 3), "DepthwiseConv2dNative": slice(0, 2), "MatMul": slice(0, 1)}
    total = sum(
        operation.outputs[0].shape.num_elements() * math.prod(operation.inputs[1].shape[summed[operation.type]])
        for operation in traced.graph.get_operations()
        if operation.type in summed
    )
    return sum(math.prod(value.shape) for value in network.trainable_variables), total


def stochastic_depth(rate: float, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Stochastic depth in training, of float32 (N, H, W, C)."""
    inputs = keras.Input(x.shape[1:])
    outputs = layers.Layers(ARCHITECTURES["cnn"], 0).stochastic_depth(inputs, "a", rate)
    return keras.Model(inputs, outputs)(x, training=True).numpy()
