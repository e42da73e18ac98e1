"""OpenVINO on the processor; reads the same ONNX file as ONNX Runtime."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openvino
from numpy.typing import NDArray

from medserve.machine import versions
from medserve.result import Operator
from medserve.spec import Deployment
from medserve.tables import INPUT
from serve.runtimes import CacheOptions, Runtime, operators, read_options

REQUIRES = ("openvino",)
READS = ("onnx",)
DEVICES = ("cpu",)
CACHES = ("cache",)
TUNING = (
    "heap",
    (
        "shapes",
        "static",
        "one compiled model for each batch size knows every shape",
        "https://docs.openvino.ai/2026/openvino-workflow/running-inference/changing-input-shape.html",
    ),
)


class Options(CacheOptions, frozen=True, kw_only=True):
    """`shapes`: one model whose batch is dynamic, or one for each batch size."""

    shapes: Literal["dynamic", "static"] = "dynamic"


class OpenVinoRuntime(Runtime):
    """See `serve.runtimes.Runtime`. With static shapes, each batch size is compiled when it first runs."""

    def __init__(self, model: openvino.Model, settings: dict[str, Any], static: bool) -> None:
        self._model = model
        self._settings = settings
        self._static = static
        self._core = openvino.Core()
        self._requests: dict[int, openvino.InferRequest] = {}

    def run(self, x: NDArray[np.uint8]) -> openvino.InferRequest:
        request = self._requests.get(len(x) if self._static else 0) or self._compile(x.shape)
        request.infer([x], share_inputs=True)
        return request

    def fetch(self, y: openvino.InferRequest) -> NDArray[np.float32]:
        # Copied: the next inference of this request overwrites the tensor.
        return y.get_output_tensor().data.copy()

    def profile(self, predict: Callable[[], object], count: int, _folder: Path) -> list[Operator]:
        plain, self._requests = self._requests, {}
        self._settings["PERF_COUNT"] = True
        took: dict[tuple[str, str], list[float]] = {}
        try:
            predict()  # compiles the model
            for _ in range(count):
                predict()
                (request,) = self._requests.values()
                for node in request.profiling_info:
                    if node.status == openvino.ProfilingInfo.Status.EXECUTED:
                        took.setdefault((node.node_name, node.node_type), []).append(
                            node.real_time / timedelta(seconds=1e-3)
                        )
        finally:
            del self._settings["PERF_COUNT"]
            self._requests = plain
        return operators(took, count)

    def facts(self) -> dict[str, Any]:
        compiled = next(iter(self._requests.values())).get_compiled_model()
        return {
            "runtime": "openvino_cpu",
            "threads": compiled.get_property("INFERENCE_NUM_THREADS"),
            "streams": compiled.get_property("NUM_STREAMS"),
            "device": self._core.get_property("CPU", "FULL_DEVICE_NAME"),
            "precision": compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name(),
            "versions": versions("openvino", "numpy"),
        }

    def _compile(self, shape: tuple[int, ...]) -> openvino.InferRequest:
        key = shape[0] if self._static else 0
        if self._static:
            self._model.reshape({INPUT: list(shape)})
        compiled = self._core.compile_model(self._model, "CPU", self._settings)
        return self._requests.setdefault(key, compiled.create_infer_request())


def load(model: Path, _classes: int, deployment: Deployment) -> OpenVinoRuntime:
    """Read the graph. Raises BadInput for unknown options."""
    options = read_options(deployment, Options)
    settings = {
        "INFERENCE_NUM_THREADS": deployment.threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        # On processors with bfloat16 instructions OpenVINO uses it by default, with 100 times the allowed error.
        "INFERENCE_PRECISION_HINT": "f32",
        # The process itself is pinned to its cores.
        "ENABLE_CPU_PINNING": False,
        "CACHE_DIR": options.cache,
    }
    return OpenVinoRuntime(openvino.Core().read_model(model), settings, options.shapes == "static")
