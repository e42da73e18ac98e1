"""LiteRT (TensorFlow Lite) with its XNNPACK kernels, on the processor."""

from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from medserve.adopted import prepare, probabilities
from medserve.machine import versions
from medserve.models import Contract
from medserve.spec import Deployment
from medserve.store import read_json
from medserve.tables import ADAPTER
from serve.runtimes import Runtime, RuntimeOptions

REQUIRES = ("ai_edge_litert",)
READS = ("tflite",)
DEVICES = ("cpu",)
TUNING = ("heap",)
Options = RuntimeOptions


class LiteRtRuntime(Runtime):
    """See `serve.runtimes.Runtime`. Each batch size has its own interpreter, created when it first runs.

    With a `contract`, the way into the model and out of it is computed here, in NumPy.
    """

    def __init__(self, model: Path, threads: int, contract: Contract | None) -> None:
        self._model = model
        self._threads = threads
        self._contract = contract
        self._interpreters: dict[int, Interpreter] = {}

    def place(self, images: NDArray[np.uint8]) -> NDArray[np.uint8] | NDArray[np.float32]:
        return images if self._contract is None else prepare(images, self._contract)

    def run(self, x: NDArray[np.uint8] | NDArray[np.float32]) -> Interpreter:
        interpreter = self._interpreters.get(len(x)) or self._create_interpreter(x.shape)
        interpreter.set_tensor(self._input, x)
        interpreter.invoke()
        return interpreter

    def fetch(self, y: Interpreter) -> NDArray[np.float32]:
        given = y.get_tensor(self._output)
        return given if self._contract is None else probabilities(given, self._contract)

    def facts(self) -> dict[str, Any]:
        # LiteRT does not report its threads; this is the number that each interpreter was created with.
        return {
            "runtime": "litert",
            "threads": self._threads,
            "device": "cpu",
            "adapter": "none" if self._contract is None else "outside the graph",
            "versions": versions("ai-edge-litert", "numpy"),
        }

    def _create_interpreter(self, shape: tuple[int, ...]) -> Interpreter:
        interpreter = Interpreter(model_path=str(self._model), num_threads=self._threads)
        self._input = interpreter.get_input_details()[0]["index"]
        outputs = {one["name"]: one["index"] for one in interpreter.get_output_details()}
        self._output = outputs[self._contract.output] if self._contract else next(iter(outputs.values()))
        interpreter.resize_tensor_input(self._input, shape)
        interpreter.allocate_tensors()
        return self._interpreters.setdefault(shape[0], interpreter)


def load(model: Path, _classes: int, deployment: Deployment) -> LiteRtRuntime:
    """Check that the model can be read."""
    Interpreter(model_path=str(model))
    path = model.with_name(ADAPTER)
    return LiteRtRuntime(model, deployment.threads, read_json(path, Contract) if path.is_file() else None)
