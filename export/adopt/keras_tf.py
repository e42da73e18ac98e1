"""Keras models (.keras, .h5) and SavedModels: a function around the model has the way in and out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from export.adopt import Found, only, takes
from export.frameworks import keras_tf
from medserve.errors import BadInput
from medserve.models import Contract
from medserve.tables import INPUT, OUTPUT

REQUIRES = ("tensorflow", "keras")
READS = (".keras", ".h5", "saved_model.pb")
WRITES = ("saved_model", "onnx", "tflite")


def inspect(path: Path, output: str = "") -> Found:
    """See `export.adopt`."""
    model = _load(path)
    if isinstance(model, keras.Model):
        inputs = {value.name: value for value in model.inputs}
        # The names of tensors differ between two loads of a file.
        outputs = dict(zip(model.output_names, model.outputs, strict=True))
        parameters = model.count_params()
    else:
        signature = _signature(path, model)
        inputs, outputs = signature.structured_input_signature[1], signature.structured_outputs
        parameters = sum(int(np.prod(value.shape)) for value in signature.variables)
    name = only(path, "input", list(inputs))
    out = only(path, "output", list(outputs), output)
    last = outputs[out].shape
    dtype = inputs[name].dtype
    return Found(
        input=name,
        output=out,
        shape=tuple(inputs[name].shape),
        takes=takes(path, dtype if isinstance(dtype, str) else dtype.name),
        outputs=int(last[-1]) if last[-1] else None,
        parameters=parameters,
    )


def scores(path: Path, contract: Contract, x: NDArray[np.float32] | NDArray[np.uint8]) -> NDArray[np.float32]:
    """See `export.adopt`."""
    given = _call(path, contract)[1](tf.constant(x))
    return given.numpy().reshape(len(x), -1).astype(np.float32)


def write(path: Path, contract: Contract, form: str, out: Path) -> None:
    """See `export.adopt`."""
    model, call = _call(path, contract)
    spec = tf.TensorSpec((None, contract.size, contract.size, contract.channels), tf.uint8, name=INPUT)

    @tf.function(input_signature=[spec])
    def classify(image: tf.Tensor) -> dict[str, tf.Tensor]:
        x = image
        if contract.takes == "float32":
            x = tf.cast(x, tf.float32) * tf.constant(contract.factor) - tf.constant(contract.offset)
        if contract.layout == "nchw":
            x = tf.transpose(x, (0, 3, 1, 2))
        y = tf.reshape(call(x), (-1, contract.outputs))
        if contract.gives == "logits":
            y = tf.sigmoid(y) if contract.activation == "sigmoid" else tf.nn.softmax(y)
        return {OUTPUT: tf.concat([1 - y, y], 1) if contract.outputs == 1 else y}

    keras_tf.write(classify, form, out, keep=model)


def _call(path: Path, contract: Contract) -> tuple[Any, Callable[[tf.Tensor], tf.Tensor]]:
    """What holds the variables, and the model from one tensor to one tensor."""
    model = _load(path)
    if isinstance(model, keras.Model):
        place = model.output_names.index(contract.output)
        # As constants: variables are read in every call.
        trained = [value.numpy() for value in model.trainable_variables]
        others = [value.numpy() for value in model.non_trainable_variables]

        def of_keras(x: tf.Tensor) -> tf.Tensor:
            given, _ = model.stateless_call(trained, others, x, training=False)
            return given[place] if isinstance(given, list | tuple) else given

        return None, of_keras
    signature = _signature(path, model)
    return model, lambda x: signature(**{contract.input: x})[contract.output]


def _signature(path: Path, model: Any) -> Any:
    if "serving_default" not in model.signatures:
        raise BadInput(f"{path}: a SavedModel without the signature serving_default; save it with one")
    return model.signatures["serving_default"]


def _load(path: Path) -> Any:
    try:
        return tf.saved_model.load(str(path)) if path.is_dir() else keras.models.load_model(path, compile=False)
    except Exception as error:  # both raise anything over other files
        raise BadInput(f"{path}: neither a Keras model nor a SavedModel: {str(error)[:300]}") from None
