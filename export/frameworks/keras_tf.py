"""Keras to SavedModel (weights as constants of the graph), to TFLite, and to ONNX (tf2onnx)."""

import gc
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # only errors
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # a GPU may be shared

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.lite.python.convert import ConverterError

from export.frameworks import Weights, build, drop_unused_domains
from medserve import plugins
from medserve.errors import CannotRun
from medserve.models import Checkpoint, Task
from medserve.spec import Device, Precision
from medserve.tables import INPUT, OPSET, OUTPUT

REQUIRES = ("tensorflow", "keras")

# TensorFlow complains where there is no GPU when it is first asked for one; see `process.quiet`.
tf.config.list_physical_devices("GPU")
WRITES = ("saved_model", "onnx", "tflite")
INT8 = ("onnx",)
FLOAT16 = ("saved_model", "onnx")
BFLOAT16 = ("saved_model",)
TF32 = ("saved_model", "onnx")


def export(
    checkpoint: Checkpoint,
    weights: Weights,
    form: str,
    path: Path,
    precision: Precision = "float32",
    _device: Device = "cpu",
) -> None:
    """See `export.frameworks`."""
    network = _network(checkpoint, weights, precision)
    trained = [value.numpy() for value in network.trainable_variables]
    statistics = [value.numpy() for value in network.non_trainable_variables]

    shape = (None, checkpoint.size, checkpoint.size, checkpoint.channels)

    @tf.function(input_signature=[tf.TensorSpec(shape, tf.uint8, name=INPUT)])
    def classify(image: tf.Tensor) -> dict[str, tf.Tensor]:
        # Given arrays for its variables, the network's weights become constants. Variables are read in every call,
        # which is a sixth of the time of one small image.
        logits, _ = network.stateless_call(trained, statistics, image, training=False)
        return {OUTPUT: _activated(tf.cast(logits, tf.float32), checkpoint.task)}

    write(classify, form, path)


def _network(checkpoint: Checkpoint, weights: Weights, precision: Precision) -> keras.Model:
    """The network in a precision: all in 16 bits but the normalisation of the image, and the activation."""
    before = keras.config.dtype_policy()
    if precision in ("float16", "bfloat16"):
        keras.config.set_dtype_policy(precision)
    try:
        return build("keras_tf", checkpoint, weights)
    finally:
        keras.config.set_dtype_policy(before)


def write(
    classify: tf.types.experimental.PolymorphicFunction, form: str, path: Path, keep: tf.Module | None = None
) -> None:
    """Write a function from `image` to `probabilities`. `keep` holds the variables that it reads, if any."""
    if form == "saved_model":
        module = tf.Module()
        module.classify, module.kept = classify, keep
        tf.saved_model.save(module, str(path.parent), signatures={"serving_default": classify})
    else:
        {"onnx": _onnx, "tflite": _tflite}[form](classify, path)


def scores(checkpoint: Checkpoint, weights: Weights, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """See `export.frameworks`."""
    tf.config.experimental.enable_tensor_float_32_execution(False)  # its error is above the certificate's limit
    return _activated(build("keras_tf", checkpoint, weights)(images, training=False), checkpoint.task).numpy()


def _activated(logits: tf.Tensor, task: Task) -> tf.Tensor:
    return tf.sigmoid(logits) if task == "multi-label" else tf.nn.softmax(logits)


def _tflite(classify: tf.types.experimental.PolymorphicFunction, path: Path) -> None:
    converter = tf.lite.TFLiteConverter.from_concrete_functions([classify.get_concrete_function()], classify)
    try:
        path.write_bytes(converter.convert())
    except ConverterError as error:
        raise CannotRun(f"the TFLite converter refused the network: {error}") from error


def _onnx(classify: tf.types.experimental.PolymorphicFunction, path: Path) -> None:
    onnx, tf2onnx = (plugins.need(name, "Keras to ONNX") for name in ("onnx", "tf2onnx"))
    try:
        with _copies_freed():
            model, _ = tf2onnx.convert.from_function(classify, input_signature=classify.input_signature, opset=OPSET)
        # An operator that it does not know stands in tf2onnx's graph under TensorFlow's name.
        onnx.checker.check_model(model)
    except (ValueError, RuntimeError, onnx.checker.ValidationError) as error:
        raise CannotRun(f"tf2onnx refused the network: {error}") from error
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    drop_unused_domains(model)  # tf2onnx declares that of classical models
    onnx.save(model, path)


@contextmanager
def _copies_freed() -> Iterator[None]:
    """Collects the graph that tf2onnx copies before each of its passes.

    Its copies hold themselves, and the collector counts objects, not bytes: EfficientNetV2-L, of 118 million weights,
    takes more than 17 GB without this, and 12.7 GB with it.
    """
    from tf2onnx.optimizer.optimizer_base import GraphOptimizerBase

    plain = GraphOptimizerBase.optimize

    def collecting(self: Any, graph: Any, iteration: int) -> Any:
        gc.collect()
        return plain(self, graph, iteration)

    gc.collect()
    gc.freeze()  # the objects of TensorFlow need not be searched each time
    GraphOptimizerBase.optimize = collecting
    try:
        yield
    finally:
        GraphOptimizerBase.optimize = plain
        gc.unfreeze()
