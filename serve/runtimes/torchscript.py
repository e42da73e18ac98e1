"""TorchScript, saved by `torch.jit.save`."""

import contextlib
import warnings
from pathlib import Path
from typing import Literal

import torch

from medserve.spec import Deployment
from serve.runtimes import RuntimeOptions, _pytorch, read_options

REQUIRES = ("torch",)
READS = ("torchscript",)
CUDA = ("nvidia-cudnn-cu13", "nvidia-cudnn-cu12")
CUDA_PACKAGES = ("torch",)
TUNING = (
    "heap",
    (
        "graph",
        "frozen",
        "weights become constants, and operators on them are folded",
        "https://docs.pytorch.org/docs/stable/generated/torch.jit.freeze.html",
    ),
    (
        "graph",
        "optimised",
        "frozen, with convolutions in the layout of oneDNN",
        "https://docs.pytorch.org/docs/stable/generated/torch.jit.optimize_for_inference.html",
    ),
    (
        "executor",
        "simple",
        "the profiling executor compiles each shape and guards every call",
        "https://docs.pytorch.org/docs/stable/generated/torch.jit.optimized_execution.html",
    ),
    (
        "kernels",
        "captured",
        "a CUDA graph starts all kernels of a batch size at once",
        "https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs",
        "cuda",
    ),
    (
        "cudnn",
        "benchmark",
        "cuDNN tries its algorithms for each shape of a convolution, and takes the fastest",
        "https://docs.pytorch.org/docs/stable/backends.html#torch.backends.cudnn.torch.backends.cudnn.benchmark",
        "cuda",
    ),
)


class Options(RuntimeOptions, frozen=True, kw_only=True):
    """`graph`: the module as it was saved, frozen, or optimised for inference; `executor`: how it is interpreted.

    On a GPU: `kernels`, whether they are started one by one; how `cudnn` chooses its algorithms.
    """

    graph: Literal["saved", "frozen", "optimised"] = "saved"
    executor: Literal["profiling", "simple"] = "profiling"
    kernels: Literal["one by one", "captured"] = "one by one"
    cudnn: Literal["default", "benchmark"] = "default"


def load(model: Path, _classes: int, deployment: Deployment) -> _pytorch.TorchRuntime:
    """The module on the deployment's device. Raises CannotRun if that is missing, BadInput for unknown options."""
    options = read_options(deployment, Options)
    device = _pytorch.prepare(deployment)
    # Possible once per process, before the first use of the pool; `facts` reports the effective value.
    with contextlib.suppress(RuntimeError):
        torch.set_num_interop_threads(1)
    with warnings.catch_warnings():
        # Measured although PyTorch deprecates it.
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
        module = torch.jit.load(str(model), map_location=device).eval()
        if options.graph != "saved":
            module = (torch.jit.freeze if options.graph == "frozen" else torch.jit.optimize_for_inference)(module)
    torch.backends.cudnn.benchmark = options.cudnn == "benchmark"
    profiled = options.executor == "profiling"

    def interpret(images: torch.Tensor) -> torch.Tensor:
        with torch.jit.optimized_execution(profiled):
            return module(images)

    return _pytorch.runtime("torchscript", interpret, deployment, captured=options.kernels == "captured")
