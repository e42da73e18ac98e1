"""Training in Keras on TensorFlow: one tf.function per step. With XLA a step takes two thirds longer on a CPU."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # only errors
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # a GPU may be shared

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from medserve.models import Architecture, Recipe, Task
from train.frameworks import RANDOM, InitialState, Rates, Weights, build, is_trained

REQUIRES = ("tensorflow", "keras")

# TensorFlow complains where there is no GPU when it is first asked for one; see `process.quiet`.
tf.config.list_physical_devices("GPU")


class AdamW(keras.optimizers.AdamW):
    """AdamW with epsilon outside the bias correction (Kingma & Ba, 2015, algorithm 1); Keras adds it inside."""

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        index = self._get_variable_index(variable)
        mean, square = self._momentums[index], self._velocities[index]
        mean.assign_add((gradient - mean) * (1.0 - self.beta_1))
        square.assign_add((tf.square(gradient) - square) * (1.0 - self.beta_2))
        # In float32, 1 - 0.999**step has only two significant digits at the first step.
        step = tf.cast(self.iterations + 1, tf.float64)
        mean_left = tf.cast(1.0 - self.beta_1**step, tf.float32)
        square_left = tf.cast(tf.sqrt(1.0 - self.beta_2**step), tf.float32)
        variable.assign_sub(learning_rate / mean_left * mean / (tf.sqrt(square) / square_left + self.epsilon))


class KerasTrainer:
    """See `train.frameworks.Trainer`."""

    def __init__(
        self,
        architecture: Architecture,
        classes: int,
        recipe: Recipe,
        rates: Rates,
        initial: InitialState = RANDOM,
        task: Task = "multi-class",
    ) -> None:
        # TensorFlow uses TF32 on a GPU by default; its error is ten times the limit of a certificate.
        tf.config.experimental.enable_tensor_float_32_execution(False)
        self._network, self._canonical = build("keras_tf", architecture, classes, recipe, initial)
        self._classes = classes
        self._rates = rates
        self._step = 0
        self._task = task
        self._smoothing = recipe.label_smoothing
        self._cross_entropy = keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=recipe.label_smoothing, reduction="none"
        )
        self._class_weights = tf.constant(initial.loss_weights(classes, task))
        self.parameters = sum(value.numpy().size for value in self._network.trainable_variables)
        # A frozen layer updates no batch-norm statistics and applies no drop-out.
        for layer in self._network.layers:
            if not is_trained(architecture, recipe, layer.name):
                layer.trainable = False
                if isinstance(layer, keras.layers.Dropout):
                    layer.rate = 0.0
        parameters = self._network.trainable_variables
        self._optimiser = AdamW(
            float(rates[0]), weight_decay=recipe.weight_decay, beta_1=0.9, beta_2=0.999, epsilon=1e-8
        )
        # Weight decay applies to matrices and kernels, not to one-dimensional parameters (batch norm, biases).
        self._optimiser.exclude_from_weight_decay(var_list=[value for value in parameters if value.ndim == 1])
        self._optimiser.build(parameters)

    def step(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
        self._optimiser.learning_rate = float(self._rates[self._step])
        loss = self._compiled_step(tf.convert_to_tensor(images), tf.convert_to_tensor(labels))
        self._step += 1
        return float(loss)

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self._compiled_predict(tf.convert_to_tensor(images)).numpy()

    def weights(self) -> Weights:
        return self._canonical.read(self._network)

    def state(self) -> dict[str, NDArray[Any]]:
        state: dict[str, NDArray[Any]] = {}
        self._optimiser.save_own_variables(state)
        return state

    def restore(self, weights: Weights, state: dict[str, NDArray[Any]]) -> None:
        self._canonical.write(self._network, weights)
        self._optimiser.load_own_variables(state)
        self._step = int(self._optimiser.iterations.numpy())
        # A drop-out layer draws once per step: its state is its seed and the number of draws.
        for layer in self._network.layers:
            if isinstance(layer, keras.layers.Dropout) and layer.rate > 0:
                seed, _ = layer.seed_generator.state.numpy()
                layer.seed_generator.state.assign([seed, self._step])

    @tf.function
    def _compiled_step(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = self._loss(self._network(images, training=True), labels)
        parameters = self._network.trainable_variables
        self._optimiser.apply(tape.gradient(loss, parameters), parameters)
        return loss

    @tf.function(reduce_retracing=True)
    def _compiled_predict(self, images: tf.Tensor) -> tf.Tensor:
        logits = self._network(images, training=False)
        return tf.sigmoid(logits) if self._task == "multi-label" else tf.nn.softmax(logits)

    def _loss(self, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        if self._task == "multi-label":
            smoothed = tf.cast(labels, tf.float32) * (1 - self._smoothing) + self._smoothing / 2
            # Keras' BinaryCrossentropy takes no weights of single labels.
            losses = tf.nn.sigmoid_cross_entropy_with_logits(smoothed, logits)
            return tf.reduce_mean(losses * tf.where(labels == 1, self._class_weights[1], self._class_weights[0]))
        losses = self._cross_entropy(tf.one_hot(labels, self._classes), logits)
        return tf.reduce_mean(losses * tf.gather(self._class_weights, labels))


create = KerasTrainer
