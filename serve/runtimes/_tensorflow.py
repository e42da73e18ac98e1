"""Shared by the runtimes for SavedModels: TensorFlow's devices and thread pools, the verbs, the model's signature."""

import contextlib
import os
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # only errors
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # a GPU may be shared

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from medserve.errors import CannotRun
from medserve.machine import versions
from medserve.result import Operator
from medserve.spec import Deployment
from medserve.tables import INPUT, OUTPUT
from serve.runtimes import Runtime, operators


class TensorFlowRuntime(Runtime):
    """See `serve.runtimes.Runtime`."""

    name: str

    def __init__(self, model: tf.Module, device: str) -> None:
        # A signature does not keep its model's variables alive.
        self._model = model
        self._function = model.signatures["serving_default"]
        self._device = device
        self._cuda = device.startswith("GPU")

    def place(self, images: NDArray[np.uint8]) -> tf.Tensor:
        with tf.device(self._device):
            return tf.constant(images)

    def run(self, x: tf.Tensor) -> tf.Tensor:
        return self._function(**{INPUT: x})[OUTPUT]

    def synchronise(self, _y: tf.Tensor) -> None:
        if self._cuda:
            tf.test.experimental.sync_devices()

    def fetch(self, y: tf.Tensor) -> NDArray[np.float32]:
        return y.numpy()

    @staticmethod
    def operator(event: str) -> tuple[str, str] | None:
        """Name and kind of an operator in the profile; null for what is none, such as the executor's own work."""
        name, colon, kind = event.rpartition(":")
        return (name, kind) if colon and "/" in name and " " not in name else None

    def profile(self, predict: Callable[[], object], count: int, folder: Path) -> list[Operator]:
        from tensorflow.tsl.profiler.protobuf.xplane_pb2 import XSpace

        tf.profiler.experimental.start(str(folder))
        try:
            for _ in range(count):
                predict()
        finally:
            tf.profiler.experimental.stop()
        (path,) = folder.rglob("*.xplane.pb")
        space, took = XSpace(), dict[tuple[str, str], list[float]]()
        space.ParseFromString(path.read_bytes())
        for plane in space.planes:
            for line in plane.lines:
                for event in line.events:
                    if found := self.operator(plane.event_metadata[event.metadata_id].name):
                        took.setdefault(found, []).append(event.duration_ps / 1e9)
        return operators(took, count)

    def facts(self) -> dict[str, Any]:
        return {
            "runtime": self.name,
            "threads": tf.config.threading.get_intra_op_parallelism_threads(),
            "interop_threads": tf.config.threading.get_inter_op_parallelism_threads(),
            "device": self._device,
            "float32_exact": self._float32_exact(),
            "versions": versions("tensorflow", "numpy"),
        }

    def _float32_exact(self) -> bool:
        """Whether a convolution keeps all 23 bits of the mantissa: TF32 keeps 10, bfloat16 7."""
        with tf.device(self._device):
            value = tf.fill((8, 8, 8, 8), 1.0 + 2.0**-20)
            unit = tf.eye(8)[None, None]
            return bool(tf.reduce_all(tf.nn.conv2d(value, unit, 1, "VALID") == value))


def read(model: Path, deployment: Deployment) -> tuple[tf.Module, str]:
    """The model on the deployment's device, and the device's name. Raises CannotRun if the device is missing."""
    # The error of TF32 is ten times the limit on the golden images.
    tf.config.experimental.enable_tensor_float_32_execution(deployment.precision == "tf32")
    gpus = tf.config.list_physical_devices("GPU")
    if deployment.device == "cuda" and not gpus:
        raise CannotRun(f"tensorflow {tf.__version__} sees no GPU; use --device cpu or a machine with a GPU")
    # Possible once per process, before the first use of devices and pools; `facts` reports the effective values.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices(gpus if deployment.device == "cuda" else [], "GPU")
        tf.config.threading.set_intra_op_parallelism_threads(deployment.threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    device = "GPU:0" if deployment.device == "cuda" else "CPU:0"
    with tf.device(device):
        return tf.saved_model.load(str(model.parent)), device
