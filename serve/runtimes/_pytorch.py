"""Shared by the runtimes of PyTorch: the verbs on a processor, on a GPU, and as CUDA graphs."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from medserve import process
from medserve.errors import CannotRun
from medserve.machine import versions
from medserve.result import Operator
from medserve.spec import Deployment
from serve.runtimes import Runtime, operators

Model = Callable[[torch.Tensor], torch.Tensor]
"""From uint8 (N, H, W, C) images to float32 (N, classes) probabilities, on one device."""
_Took = dict[tuple[str, str], list[float]]
"""The milliseconds of each call of an operator, by its name and kind."""

INTERPRETER = "forward"
"""A profiled TorchScript module: the time in no operator that it reports."""
CALLS_ONEDNN = re.compile("mkldnn|linear_pointwise")


class TorchRuntime(Runtime):
    """See `serve.runtimes.Runtime`."""

    def __init__(self, name: str, model: Model, deployment: Deployment) -> None:
        self._name = name
        self._model = model
        self._device = torch.device(deployment.device)

    def place(self, images: NDArray[np.uint8]) -> Any:
        return torch.from_numpy(images)

    def run(self, x: Any) -> torch.Tensor:
        with torch.inference_mode():
            return self._model(x)

    def fetch(self, y: torch.Tensor) -> NDArray[np.float32]:
        return y.numpy()

    def profile(self, predict: Callable[[], object], count: int, _folder: Path) -> list[Operator]:
        # First, for the latency beside the operators is that of the last `count` predictions.
        inside = _onednn(predict, count) if self._device.type == "cpu" and torch.backends.mkldnn.is_available() else {}
        processor = [torch.profiler.ProfilerActivity.CPU]
        # The profiler writes of its start and its end.
        with process.quiet(), torch.profiler.profile(activities=processor, record_shapes=True) as profiled:
            for _ in range(count):
                predict()
        took: _Took = {}
        for event in profiled.key_averages(group_by_input_shape=True):
            if event.key == INTERPRETER:
                continue
            shapes = " ".join("x".join(map(str, shape)) for shape in event.input_shapes if shape)
            name = f"{event.key} {shapes}".strip()
            took[name, event.key] = [event.self_cpu_time_total / 1e3 / event.count] * event.count
        return operators(_with_onednn(took, inside, count) if inside else took, count)

    def facts(self) -> dict[str, Any]:
        return {
            "runtime": self._name,
            "threads": torch.get_num_threads(),
            "interop_threads": torch.get_num_interop_threads(),
            "device": "cpu" if self._device.type == "cpu" else torch.cuda.get_device_name(self._device),
            "float32_exact": self._float32_exact(),
            "versions": versions("torch", "numpy"),
        }

    def _float32_exact(self) -> bool:
        """Whether a convolution keeps all 23 bits of the mantissa: TF32 keeps 10, bfloat16 7."""
        value = torch.full((8, 8, 8, 8), 1.0 + 2.0**-20, device=self._device)
        unit = torch.eye(8, device=self._device)[:, :, None, None]
        return bool((torch.nn.functional.conv2d(value, unit) == value).all())


class CudaRuntime(TorchRuntime):
    """See `serve.runtimes.Runtime`. Kernels of one stream run one after another: each instance has a stream."""

    def __init__(self, name: str, model: Model, deployment: Deployment) -> None:
        super().__init__(name, model, deployment)
        several = deployment.instances > 1
        self._stream = torch.cuda.Stream(self._device) if several else torch.cuda.current_stream(self._device)

    def place(self, images: NDArray[np.uint8]) -> Any:
        # From pageable memory the driver would copy twice, and synchronously.
        pinned = torch.from_numpy(images).pin_memory()
        with torch.cuda.stream(self._stream):
            return pinned.to(self._device, non_blocking=True)

    def run(self, x: Any) -> torch.Tensor:
        with torch.cuda.stream(self._stream):
            return super().run(x)

    def synchronise(self, _y: torch.Tensor) -> None:
        self._stream.synchronize()

    def fetch(self, y: torch.Tensor) -> NDArray[np.float32]:
        with torch.cuda.stream(self._stream):
            return y.cpu().numpy()

    def device_ns(self, x: Any) -> int | None:
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record(self._stream)
        self.run(x)
        after.record(self._stream)
        after.synchronize()
        return round(before.elapsed_time(after) * 1e6)


class Captured(NamedTuple):
    """A CUDA graph of one batch size, and the memory that it reads and writes: pinned, and on the device."""

    graph: torch.cuda.CUDAGraph
    pinned: torch.Tensor
    images: torch.Tensor
    scores: torch.Tensor


class CapturedRuntime(CudaRuntime):
    """See `serve.runtimes.Runtime`. Each batch size is captured when it first runs, and replayed from then on."""

    WARMUPS = 3
    """Calls before a capture, in which libraries choose algorithms and allocate, which a graph cannot hold."""

    def __init__(self, name: str, model: Model, deployment: Deployment) -> None:
        super().__init__(name, model, deployment)
        self._captured: dict[int, Captured] = {}

    def place(self, images: NDArray[np.uint8]) -> Captured:
        if (found := self._captured.get(len(images))) is None:
            found = self._captured.setdefault(len(images), self._capture(images))
        found.pinned.copy_(torch.from_numpy(images))
        with torch.cuda.stream(self._stream):
            found.images.copy_(found.pinned, non_blocking=True)
        return found

    def run(self, x: Any) -> torch.Tensor:
        with torch.cuda.stream(self._stream):
            x.graph.replay()
        return x.scores

    def _capture(self, images: NDArray[np.uint8]) -> Captured:
        pinned = torch.from_numpy(images).pin_memory()
        placed = pinned.to(self._device)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside), torch.inference_mode():
            for _ in range(self.WARMUPS):
                self._model(placed)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph), torch.inference_mode():
            scores = self._model(placed)
        return Captured(graph, pinned, placed, scores)


def _onednn(predict: Callable[[], object], count: int) -> _Took:
    """The primitives of oneDNN in `count` predictions, as it prints them."""

    def told() -> None:
        with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
            for _ in range(count):
                predict()

    inside: _Took = {}
    for line in process.printed(told).splitlines():
        match line.split(","):
            case ["onednn_verbose", _, "primitive", "exec", _, kind, *_, shape, ms]:
                inside.setdefault((f"oneDNN {kind} {shape}", kind), []).append(float(ms))
    return inside


def _with_onednn(took: _Took, inside: _Took, count: int) -> _Took:
    """The profiled calls, with oneDNN's primitives instead of the calls that lead to them.

    PyTorch's profiler does not tell what such a call spends on packing weights, and does not see those of an optimised
    TorchScript module at all.
    """
    outside = {key: calls for key, calls in took.items() if not CALLS_ONEDNN.search(key[1])}
    around = sum(map(sum, took.values())) - sum(map(sum, outside.values())) - sum(map(sum, inside.values()))
    if around > 0:
        outside["around oneDNN's primitives", "call"] = [around / count] * count
    return outside | inside


def prepare(deployment: Deployment) -> torch.device:
    """The deployment's device, before a model is loaded for it. Raises CannotRun where PyTorch does not see it."""
    torch.set_num_threads(deployment.threads)
    # cuDNN uses TF32 for convolutions by default; its error is ten times the limit on the golden images.
    torch.backends.cudnn.allow_tf32 = deployment.precision == "tf32"
    torch.set_float32_matmul_precision("high" if deployment.precision == "tf32" else "highest")
    if deployment.device == "cuda" and not torch.cuda.is_available():
        raise CannotRun(f"torch {torch.__version__} sees no CUDA device; use --device cpu or a machine with a GPU")
    with warnings.catch_warnings():
        # Torch warns once per process about read-only input. Requests are read-only, and no model writes to its input.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        torch.from_numpy(np.frombuffer(b"0", np.uint8))
    return torch.device(deployment.device)


def runtime(name: str, model: Model, deployment: Deployment, *, captured: bool) -> TorchRuntime:
    """The runtime `name` of a model that is loaded on the deployment's device, on a GPU `captured` or not."""
    if deployment.device == "cpu":
        return TorchRuntime(name, model, deployment)
    return (CapturedRuntime if captured else CudaRuntime)(name, model, deployment)
