"""PyTorch AOTInductor: a network exported by `torch.export` and compiled to machine code, on the processor."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch._inductor import aoti_load_package

from medserve.errors import CannotRun
from medserve.machine import versions
from medserve.result import Operator
from medserve.spec import Deployment
from medserve.tables import SINGLE
from serve.runtimes import Runtime, RuntimeOptions, _pytorch, read_options

REQUIRES = ("torch",)
READS = ("aotinductor",)
DEVICES = ("cpu",)
PROGRAMS = ("g++",)
TUNING = (
    "heap",
    (
        "single",
        "compiled",
        "weights are packed for one batch size; with another one oneDNN packs them again in every call",
        "https://docs.pytorch.org/docs/stable/torch.compiler_aot_inductor.html",
    ),
)


class Options(RuntimeOptions, frozen=True, kw_only=True):
    """`single`: images that come alone are computed by the code for any batch, or by code for one image."""

    single: Literal["any batch", "compiled"] = "any batch"


class AotInductorRuntime(Runtime):
    """See `serve.runtimes.Runtime`."""

    def __init__(self, model: Any, single: Any) -> None:
        self._model = model
        self._single = single

    def place(self, images: NDArray[np.uint8]) -> torch.Tensor:
        return torch.from_numpy(images)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return self._single(x) if len(x) == 1 else self._model(x)

    def fetch(self, y: torch.Tensor) -> NDArray[np.float32]:
        return y.numpy()

    def profile(self, predict: Callable[[], object], count: int, _folder: Path) -> list[Operator]:
        return _pytorch.profile(predict, count)

    def facts(self) -> dict[str, Any]:
        return {
            "runtime": "aotinductor",
            "threads": torch.get_num_threads(),
            "device": "cpu",
            "versions": versions("torch", "numpy"),
        }


def load(model: Path, _classes: int, deployment: Deployment) -> AotInductorRuntime:
    """Load the compiled code. Raises CannotRun for code for one image that the artifact does not have."""
    # The compiled code reads the number of threads in every call.
    torch.set_num_threads(deployment.threads)
    with warnings.catch_warnings():
        # Torch warns once per process about read-only input. Requests are read-only, and no model writes to its input.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        torch.from_numpy(np.frombuffer(b"0", np.uint8))
    loaded = single = aoti_load_package(str(model), run_single_threaded=True)
    if read_options(deployment, Options).single == "compiled":
        path = model.parents[1] / SINGLE / model.name
        if not path.is_file():
            raise CannotRun("the artifact has no code for one image; export it again")
        single = aoti_load_package(str(path), run_single_threaded=True)
    return AotInductorRuntime(loaded, single)
