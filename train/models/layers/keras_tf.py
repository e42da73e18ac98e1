"""Layers of all families in Keras, on TensorFlow."""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import tensorflow as tf

from medserve.spec import Architecture

REQUIRES = ("tensorflow", "keras")


class BatchNormalization(keras.layers.BatchNormalization):
    """Batch norm with TensorFlow's fused kernel, whose batch variance is unbiased, as in PyTorch."""

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


def normalise(images: keras.KerasTensor, architecture: Architecture) -> keras.KerasTensor:
    """uint8 images to float32, normalised with the architecture's mean and standard deviation."""
    return keras.layers.Rescaling(
        scale=[1.0 / (255.0 * std) for std in architecture.std],
        offset=[-mean / std for mean, std in zip(architecture.mean, architecture.std, strict=True)],
    )(images)


def conv(
    x: keras.KerasTensor,
    width: int,
    kernel: int,
    stride: int = 1,
    *,
    bias: bool = False,
    name: str,
    seeds: keras.random.SeedGenerator,
) -> keras.KerasTensor:
    """A convolution that pads half its kernel on every side."""
    layer = keras.layers.Conv2D(
        width,
        kernel,
        stride,
        _padding(stride),
        use_bias=bias,
        kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal", seed=seeds),
        name=name,
    )
    return layer(_pad(x, kernel, stride))


def depthwise_conv(
    x: keras.KerasTensor, kernel: int, stride: int = 1, *, name: str, seeds: keras.random.SeedGenerator
) -> keras.KerasTensor:
    """A depthwise convolution that pads half its kernel on every side."""
    layer = keras.layers.DepthwiseConv2D(
        kernel,
        stride,
        _padding(stride),
        use_bias=False,
        # The kernel is (H, W, C, 1), so its fan in according to Keras equals the fan out of PyTorch.
        depthwise_initializer=keras.initializers.VarianceScaling(2.0, "fan_in", "untruncated_normal", seed=seeds),
        name=name,
    )
    return layer(_pad(x, kernel, stride))


def batch_norm(x: keras.KerasTensor, *, epsilon: float = 1e-5, name: str) -> keras.KerasTensor:
    """Batch norm that updates its running statistics with a tenth of each batch."""
    return BatchNormalization(momentum=0.9, epsilon=epsilon, name=name)(x)


def stochastic_depth(x: keras.KerasTensor, rate: float, seed: int, *, name: str) -> keras.KerasTensor:
    """Stochastic depth (Huang et al., 2016): drops the branch for a random share of the images, scales the rest."""
    return keras.layers.Dropout(rate, noise_shape=(None, 1, 1, 1), seed=seed, name=f"{name}.stochastic_depth")(x)


def head(
    x: keras.KerasTensor,
    classes: int,
    hidden: int,
    drop_out: float,
    drop_seed: int,
    *,
    name: str,
    seeds: keras.random.SeedGenerator,
) -> keras.KerasTensor:
    """From features to logits: drop-out and a linear layer, after a dense layer of `hidden` units unless that is 0."""
    narrow = keras.initializers.RandomNormal(stddev=0.01, seed=seeds)
    if hidden:
        x = keras.layers.Dense(hidden, "relu", kernel_initializer=narrow, name=f"{name}.0")(x)
        name = f"{name}.1"
    x = keras.layers.Dropout(drop_out, seed=drop_seed, name=f"{name}.drop_out")(x)
    return keras.layers.Dense(classes, kernel_initializer=narrow, name=name)(x)


# At stride 1, "same" pads half the kernel on every side, as in PyTorch; at stride 2 it pads less at the top and left.
def _padding(stride: int) -> str:
    return "same" if stride == 1 else "valid"


def _pad(x: keras.KerasTensor, kernel: int, stride: int) -> keras.KerasTensor:
    return x if stride == 1 or kernel == 1 else keras.layers.ZeroPadding2D(kernel // 2)(x)
