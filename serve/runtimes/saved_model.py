"""SavedModel, called through the concrete function of its signature; Keras' `predict` is for whole data sets."""

from functools import cached_property
from pathlib import Path

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from medserve.spec import Deployment
from medserve.tables import INPUT, OUTPUT
from serve.runtimes import RuntimeOptions, _tensorflow

REQUIRES = ("tensorflow",)
READS = ("saved_model",)
CUDA = ("nvidia-cudnn-cu12",)
CUDA_PACKAGES = ("tensorflow[and-cuda]",)
MISTAKES = ("predict",)
TUNING = ("heap",)
Options = RuntimeOptions


class SavedModelRuntime(_tensorflow.TensorFlowRuntime):
    """See `serve.runtimes.Runtime`."""

    name = "saved_model"

    def __init__(self, model: tf.Module, device: str, folder: Path) -> None:
        super().__init__(model, device)
        self._folder = folder

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The same prediction by `keras.Model.predict`, a timing mistake that studies can measure (see MISTAKES)."""
        with tf.device(self._device):
            return self._keras.predict(images, verbose=0)[OUTPUT]

    @cached_property
    def _keras(self) -> tf.keras.Model:
        layer = tf.keras.layers.TFSMLayer(str(self._folder), call_endpoint="serving_default")
        image = tf.keras.Input(self._function.structured_input_signature[1][INPUT].shape[1:], dtype="uint8", name=INPUT)
        return tf.keras.Model(image, layer(image))


def load(model: Path, _classes: int, deployment: Deployment) -> SavedModelRuntime:
    """Load the model onto the deployment's device. Raises CannotRun if the device is missing."""
    return SavedModelRuntime(*_tensorflow.read(model, deployment), model.parent)
