"""TorchScript, saved by `torch.jit.save`."""

import contextlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from medserve.errors import CannotRun
from medserve.machine import versions
from medserve.result import Operator
from medserve.spec import Deployment
from serve.runtimes import Runtime, RuntimeOptions, _pytorch, read_options

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


class TorchScriptRuntime(Runtime):
    """See `serve.runtimes.Runtime`."""

    def __init__(self, module: torch.jit.ScriptModule, device: torch.device, options: Options) -> None:
        self._module = module
        self._device = device
        self._options = options
        self._profiled = options.executor == "profiling"
        self._cuda = device.type == "cuda"

    def place(self, images: NDArray[np.uint8]) -> torch.Tensor:
        tensor = torch.from_numpy(images)
        # From pageable memory the driver would copy twice, and synchronously.
        return tensor.pin_memory().to(self._device, non_blocking=True) if self._cuda else tensor

    def run(self, x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(), torch.jit.optimized_execution(self._profiled):
            return self._module(x)

    def synchronise(self, _y: torch.Tensor) -> None:
        if self._cuda:
            torch.cuda.synchronize(self._device)

    def device_ns(self, x: Any) -> int | None:
        if not self._cuda:
            return None
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        self.run(x)
        after.record()
        after.synchronize()
        return round(before.elapsed_time(after) * 1e6)

    def fetch(self, y: torch.Tensor) -> NDArray[np.float32]:
        return y.cpu().numpy() if self._cuda else y.numpy()

    def profile(self, predict: Callable[[], object], count: int, _folder: Path) -> list[Operator]:
        return _pytorch.profile(predict, count)

    def facts(self) -> dict[str, Any]:
        return {
            "runtime": "torchscript",
            "threads": torch.get_num_threads(),
            "interop_threads": torch.get_num_interop_threads(),
            "device": torch.cuda.get_device_name(self._device) if self._cuda else "cpu",
            "float32_exact": self._float32_exact(),
            "versions": versions("torch", "numpy"),
        }

    def _float32_exact(self) -> bool:
        """Whether a convolution keeps all 23 bits of the mantissa: TF32 keeps 10, bfloat16 7."""
        value = torch.full((8, 8, 8, 8), 1.0 + 2.0**-20, device=self._device)
        unit = torch.eye(8, device=self._device)[:, :, None, None]
        return bool((torch.nn.functional.conv2d(value, unit) == value).all())


class Captured(NamedTuple):
    """A CUDA graph of one batch size, and the memory that it reads and writes: pinned, and on the device."""

    graph: torch.cuda.CUDAGraph
    pinned: torch.Tensor
    images: torch.Tensor
    scores: torch.Tensor


class CapturedRuntime(TorchScriptRuntime):
    """See `serve.runtimes.Runtime`. Each batch size is captured when it first runs, and replayed from then on."""

    WARMUPS = 3
    """Calls before a capture, in which libraries choose algorithms and allocate, which a graph cannot hold."""

    def __init__(self, module: torch.jit.ScriptModule, device: torch.device, options: Options) -> None:
        super().__init__(module, device, options)
        self._captured: dict[int, Captured] = {}

    def place(self, images: NDArray[np.uint8]) -> Captured:
        if (found := self._captured.get(len(images))) is None:
            found = self._captured.setdefault(len(images), self._capture(images))
        found.pinned.copy_(torch.from_numpy(images))
        found.images.copy_(found.pinned, non_blocking=True)
        return found

    def run(self, x: Any) -> torch.Tensor:
        x.graph.replay()
        return x.scores

    def _capture(self, images: NDArray[np.uint8]) -> Captured:
        pinned = torch.from_numpy(images).pin_memory()
        placed = pinned.to(self._device)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(self.WARMUPS):
                super().run(placed)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            scores = super().run(placed)
        return Captured(graph, pinned, placed, scores)


def load(model: Path, _classes: int, deployment: Deployment) -> TorchScriptRuntime:
    """The module on the deployment's device. Raises CannotRun if that is missing, BadInput for unknown options."""
    options = read_options(deployment, Options)
    torch.set_num_threads(deployment.threads)
    # Possible once per process, before the first use of the pool; `facts` reports the effective value.
    with contextlib.suppress(RuntimeError):
        torch.set_num_interop_threads(1)
    # cuDNN uses TF32 for convolutions by default; its error is ten times the limit on the golden images.
    torch.backends.cudnn.allow_tf32 = deployment.precision == "tf32"
    torch.set_float32_matmul_precision("high" if deployment.precision == "tf32" else "highest")
    if deployment.device == "cuda" and not torch.cuda.is_available():
        raise CannotRun(f"torch {torch.__version__} sees no CUDA device; use --device cpu or a machine with a GPU")
    device = torch.device(deployment.device)
    with warnings.catch_warnings():
        # Torch warns once per process about read-only input. Requests are read-only, and no model writes to its input.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        torch.from_numpy(np.frombuffer(b"0", np.uint8))
        # Measured although PyTorch deprecates it.
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
        module = torch.jit.load(str(model), map_location=device).eval()
        if options.graph != "saved":
            module = (torch.jit.freeze if options.graph == "frozen" else torch.jit.optimize_for_inference)(module)
    torch.backends.cudnn.benchmark = options.cudnn == "benchmark"
    captured = options.kernels == "captured" and deployment.device == "cuda"
    return (CapturedRuntime if captured else TorchScriptRuntime)(module, device, options)
