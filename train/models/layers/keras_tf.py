"""Layers of all families in Keras, on TensorFlow."""

from itertools import count

import keras
import tensorflow as tf

from medserve.models import Architecture
from train.models import Conv


class BatchNormalization(keras.layers.BatchNormalization):
    """Batch norm with TensorFlow's fused kernel, whose batch variance is unbiased, as in PyTorch."""

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        learning = bool(training) and self.trainable
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            # The kernel has them in float32, whatever the precision of the images is.
            scale=tf.cast(self.gamma, tf.float32),
            offset=tf.cast(self.beta, tf.float32),
            mean=[] if learning else tf.cast(self.moving_mean, tf.float32),
            variance=[] if learning else tf.cast(self.moving_variance, tf.float32),
            epsilon=self.epsilon,
            is_training=learning,
        )
        if learning:
            self.moving_mean.assign(self.moving_mean * self.momentum + mean * (1.0 - self.momentum))
            self.moving_variance.assign(self.moving_variance * self.momentum + variance * (1.0 - self.momentum))
        return outputs


class Layers:
    """The layers of one network, each called by its canonical name, and the seeds of its weights and masks.

    `normalised` are the network's images in float32, normalised with the architecture's mean and standard deviation.
    """

    def __init__(self, architecture: Architecture, seed: int) -> None:
        self._name = architecture.name
        self._seeds = keras.random.SeedGenerator(seed)
        # Each drop-out layer needs its own seed.
        self._drop_seeds = count(seed << 16)
        self._images = keras.Input((None, None, architecture.channels), dtype="uint8", name="image")
        self.normalised = keras.layers.Rescaling(
            scale=[1.0 / (255.0 * std) for std in architecture.std],
            offset=[-mean / std for mean, std in zip(architecture.mean, architecture.std, strict=True)],
            dtype="float32",
        )(self._images)

    def conv(self, x: keras.KerasTensor, name: str, plan: Conv) -> keras.KerasTensor:
        """The convolution of a plan."""
        # A depthwise kernel is (H, W, C, 1), so its fan in according to Keras equals the fan out of PyTorch.
        fan = "fan_out" if plan.groups == 1 else "fan_in"
        initial = keras.initializers.VarianceScaling(2.0, fan, "untruncated_normal", seed=self._seeds)
        # At stride 1, "same" pads half the kernel on every side, as in PyTorch; at stride 2 less at the top and left.
        padding = "same" if plan.stride == 1 else "valid"
        if plan.stride > 1 and plan.kernel > 1:
            x = keras.layers.ZeroPadding2D(plan.kernel // 2)(x)
        shape = (plan.kernel, plan.stride, padding)
        if plan.groups == 1:
            return keras.layers.Conv2D(plan.width, *shape, use_bias=plan.bias, kernel_initializer=initial, name=name)(x)
        return keras.layers.DepthwiseConv2D(*shape, use_bias=plan.bias, depthwise_initializer=initial, name=name)(x)

    def batch_norm(self, x: keras.KerasTensor, name: str, epsilon: float = 1e-5) -> keras.KerasTensor:
        """Batch norm that updates its running statistics with a tenth of each batch."""
        return BatchNormalization(momentum=0.9, epsilon=epsilon, name=name)(x)

    def drop_out(self, x: keras.KerasTensor, name: str, rate: float) -> keras.KerasTensor:
        """Drop-out with masks of its own."""
        return keras.layers.Dropout(rate, seed=next(self._drop_seeds), name=name)(x)

    def stochastic_depth(self, x: keras.KerasTensor, name: str, rate: float) -> keras.KerasTensor:
        """Stochastic depth (Huang et al., 2016): drops the branch for a random share of the images, scales the rest."""
        return keras.layers.Dropout(rate, noise_shape=(None, 1, 1, 1), seed=next(self._drop_seeds), name=name)(x)

    def network(self, x: keras.KerasTensor, name: str, classes: int, hidden: int, drop_out: float) -> keras.Model:
        """The network that ends, behind the features `x`, with drop-out and a linear layer to the logits.

        Before these comes a dense layer of `hidden` units with a ReLU, unless that is 0.
        """
        narrow = keras.initializers.RandomNormal(stddev=0.01, seed=self._seeds)
        if hidden:
            x = keras.layers.ReLU()(keras.layers.Dense(hidden, kernel_initializer=narrow, name=f"{name}.0")(x))
            name = f"{name}.1"
        x = self.drop_out(x, f"{name}.drop_out", drop_out)
        logits = keras.layers.Dense(classes, kernel_initializer=narrow, name=name)(x)
        return keras.Model(self._images, logits, name=self._name)
