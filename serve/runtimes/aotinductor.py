"""PyTorch AOTInductor: a network exported by `torch.export` and compiled to machine code, on the processor."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch._inductor import aoti_load_package

from medserve.machine import versions
from medserve.spec import Deployment
from serve.runtimes import Runtime, RuntimeOptions

REQUIRES = ("torch",)
READS = ("aotinductor",)
DEVICES = ("cpu",)
PROGRAMS = ("g++",)
TUNING = ("heap",)
Options = RuntimeOptions


class AotInductorRuntime(Runtime):
    """See `serve.runtimes.Runtime`."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def place(self, images: NDArray[np.uint8]) -> torch.Tensor:
        return torch.from_numpy(images)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return self._model(x)

    def fetch(self, y: torch.Tensor) -> NDArray[np.float32]:
        return y.numpy()

    def facts(self) -> dict[str, Any]:
        return {
            "runtime": "aotinductor",
            "threads": torch.get_num_threads(),
            "device": "cpu",
            "versions": versions("torch", "numpy"),
        }


def load(model: Path, _classes: int, deployment: Deployment) -> AotInductorRuntime:
    """Load the compiled code."""
    # The compiled code reads the number of threads in every call.
    torch.set_num_threads(deployment.threads)
    with warnings.catch_warnings():
        # Torch warns once per process about read-only input. Requests are read-only, and no model writes to its input.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        torch.from_numpy(np.frombuffer(b"0", np.uint8))
    return AotInductorRuntime(aoti_load_package(str(model), run_single_threaded=True))
