"""PyTorch AOTInductor: a network exported by `torch.export` and compiled to machine code, for a processor or a GPU."""

from pathlib import Path
from typing import Literal

import torch
from torch._inductor import aoti_load_package

from medserve.errors import CannotRun
from medserve.spec import Deployment
from medserve.tables import FOR_GPU, SINGLE
from serve.runtimes import RuntimeOptions, _pytorch, read_options

REQUIRES = ("torch",)
READS = ("aotinductor",)
PROGRAMS = ("g++",)
CUDA = ("nvidia-cudnn-cu13", "nvidia-cudnn-cu12")
CUDA_PACKAGES = ("torch",)
TUNING = (
    "heap",
    (
        "single",
        "compiled",
        "weights are packed for one image and one thread; with any other batch oneDNN packs them in every call",
        "https://docs.pytorch.org/docs/stable/torch.compiler_aot_inductor.html",
        "cpu",
    ),
    (
        "kernels",
        "captured",
        "a CUDA graph starts all kernels of a batch size at once",
        "https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs",
        "cuda",
    ),
)


class Options(RuntimeOptions, frozen=True, kw_only=True):
    """`single`: images that come alone are computed by the code for any batch, or on a processor by code for one image.

    On a GPU: `kernels`, whether they are started one by one.
    """

    single: Literal["any batch", "compiled"] = "any batch"
    kernels: Literal["one by one", "captured"] = "one by one"


def load(model: Path, _classes: int, deployment: Deployment) -> _pytorch.TorchRuntime:
    """Load the compiled code for the deployment's device.

    Raises CannotRun for code that the artifact does not have, or a device that is missing.
    """
    options = read_options(deployment, Options)
    # The compiled code reads the number of threads in every call.
    _pytorch.prepare(deployment)
    if deployment.device == "cuda":
        model = model.parents[1] / FOR_GPU / model.name
        if not model.is_file():
            raise CannotRun("the artifact has no code for a GPU; export it on one with --device cuda")
    whole = single = aoti_load_package(str(model), run_single_threaded=True)
    if options.single == "compiled" and deployment.device == "cpu":
        path = model.parents[1] / SINGLE / model.name
        if not path.is_file():
            raise CannotRun("the artifact has no code for one image; export it again")
        single = aoti_load_package(str(path), run_single_threaded=True)

    def compute(images: torch.Tensor) -> torch.Tensor:
        return single(images) if len(images) == 1 else whole(images)

    return _pytorch.runtime("aotinductor", compute, deployment, captured=options.kernels == "captured")
