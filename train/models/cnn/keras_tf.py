"""The small CNN in Keras, on TensorFlow."""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import tensorflow as tf

from medserve.spec import Architecture

REQUIRES = ("tensorflow", "keras")


class BatchNormalization(keras.layers.BatchNormalization):
    """Keras's layer on TensorFlow's fused kernel, whose batch variance is the unbiased one that PyTorch keeps too."""

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        learning = bool(training) and self.trainable
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=tf.convert_to_tensor(self.gamma),
            offset=tf.convert_to_tensor(self.beta),
            mean=[] if learning else tf.convert_to_tensor(self.moving_mean),
            variance=[] if learning else tf.convert_to_tensor(self.moving_variance),
            epsilon=self.epsilon,
            is_training=learning,
        )
        if learning:
            self.moving_mean.assign(self.moving_mean * self.momentum + mean * (1.0 - self.momentum))
            self.moving_variance.assign(self.moving_variance * self.momentum + variance * (1.0 - self.momentum))
        return outputs


def conv_norm(x: keras.KerasTensor, width: int, name: str, seeds: keras.random.SeedGenerator) -> keras.KerasTensor:
    """3x3 convolution, batch norm, ReLU; the image keeps its size."""
    # At stride 1 "same" is one pixel on every side, as in PyTorch; at stride 2 it would not be.
    x = keras.layers.Conv2D(
        width,
        3,
        padding="same",
        use_bias=False,
        kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal", seed=seeds),
        name=f"{name}.conv",
    )(x)
    x = BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}.bn")(x)
    return keras.layers.ReLU()(x)


def build(architecture: Architecture, classes: int, seed: int = 0) -> keras.Model:
    """The network with seeded initial weights; its layers bear their canonical names."""
    seeds = keras.random.SeedGenerator(seed)
    images = keras.Input((None, None, 3), dtype="uint8", name="image")
    x = keras.layers.Rescaling(
        scale=[1.0 / (255.0 * std) for std in architecture.std],
        offset=[-mean / std for mean, std in zip(architecture.mean, architecture.std, strict=True)],
    )(images)
    for index, (width, depth) in enumerate(zip(architecture.widths, architecture.depths, strict=True)):
        if index > 0:
            x = keras.layers.MaxPooling2D(2)(x)
        for place in range(depth):
            x = conv_norm(x, width, f"stages.{index}.{place}", seeds)
    x = keras.layers.GlobalAveragePooling2D()(x)
    head = keras.initializers.RandomNormal(stddev=0.01, seed=seeds)
    logits = keras.layers.Dense(classes, kernel_initializer=head, name="fc")(x)
    return keras.Model(images, logits, name=architecture.name)
