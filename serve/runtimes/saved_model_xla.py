"""SavedModel compiled by XLA; each batch size is compiled when it first runs."""

import re
from pathlib import Path

import tensorflow as tf

from medserve.spec import Deployment
from serve.runtimes import RuntimeOptions, _tensorflow

REQUIRES = ("tensorflow",)
READS = ("saved_model",)
CUDA = ("nvidia-cudnn-cu12",)
CUDA_PACKAGES = ("tensorflow[and-cuda]",)
TUNING = ("heap",)
Options = RuntimeOptions


class XlaRuntime(_tensorflow.TensorFlowRuntime):
    """See `serve.runtimes.Runtime`."""

    name = "saved_model_xla"

    def __init__(self, model: tf.Module, device: str) -> None:
        super().__init__(model, device)
        signature = self._function
        compiled = tf.function(lambda **image: signature(**image), jit_compile=True)
        # A concrete function: a tf.function would look up the trace for its arguments in every call.
        self._function = compiled.get_concrete_function(**signature.structured_input_signature[1])

    @staticmethod
    def operator(event: str) -> tuple[str, str] | None:
        """As `TensorFlowRuntime.operator`: `multiply_bitcast_fusion.2` is a fusion."""
        found = re.fullmatch(r"((?:[a-z-]+_)*([a-z-]+))(\.\d+)*", event)
        return (event, found[2]) if found else None


def load(model: Path, _classes: int, deployment: Deployment) -> XlaRuntime:
    """Load the model onto the deployment's device. Raises CannotRun if the device is missing."""
    return XlaRuntime(*_tensorflow.read(model, deployment))
