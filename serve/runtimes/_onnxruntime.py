"""Shared by the runtimes on ONNX Runtime: a session on an execution provider, with the four verbs."""

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from medserve.errors import CannotRun
from medserve.machine import versions
from medserve.result import Operator
from medserve.spec import Deployment
from medserve.tables import INPUT, OUTPUT
from serve.runtimes import Runtime, operators

Provider = tuple[str, dict[str, str]]
CPU: Provider = ("CPUExecutionProvider", {})


def cuda(deployment: Deployment, **settings: str) -> Provider:
    """The provider for NVIDIA's GPUs, with TF32, its default, only where the deployment's artifact allows its error."""
    return "CUDAExecutionProvider", {"use_tf32": str(int(deployment.precision == "tf32"))} | settings


class CpuRuntime(Runtime):
    """See `serve.runtimes.Runtime`. NumPy arrays are not copied."""

    def __init__(self, name: str, session: onnxruntime.InferenceSession, model: Path) -> None:
        self._name = name
        self._session = session
        self._model = model

    def place(self, images: NDArray[np.uint8]) -> Any:
        return {INPUT: images}

    def run(self, x: Any) -> Any:
        return self._session.run([OUTPUT], x)

    def fetch(self, y: Any) -> NDArray[np.float32]:
        return y[0]

    def profile(self, predict: Callable[[], object], count: int, folder: Path) -> list[Operator]:
        # A session profiles from its first run, or never.
        options, plain = self._session.get_session_options(), self._session
        options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
        self._use(onnxruntime.InferenceSession(str(self._model), options, providers=plain.get_providers()))
        try:
            for _ in range(count):
                predict()
            events = json.loads(Path(self._session.end_profiling()).read_bytes())
        finally:
            self._use(plain)
        took: dict[tuple[str, str], list[float]] = {}
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                name = event["name"].removesuffix("_kernel_time")
                took.setdefault((name, event["args"]["op_name"]), []).append(event["dur"] / 1e3)
        return operators(took, count)

    def _use(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session

    def facts(self) -> dict[str, Any]:
        options = self._session.get_session_options()
        return {
            "runtime": self._name,
            "threads": options.intra_op_num_threads,
            "interop_threads": options.inter_op_num_threads,
            "device": self._session.get_providers()[0],
            "arena": options.enable_cpu_mem_arena,
            "provider_options": self._session.get_provider_options(),
            "versions": versions("onnxruntime-gpu", "onnxruntime", "numpy"),
        }


class BoundRuntime(CpuRuntime):
    """See `serve.runtimes.Runtime`. The outputs of each batch size are always the same array."""

    def __init__(self, name: str, session: onnxruntime.InferenceSession, model: Path) -> None:
        super().__init__(name, session, model)
        self._bindings: dict[int, Any] = {}

    def _use(self, session: onnxruntime.InferenceSession) -> None:
        super()._use(session)
        # A binding is of one session.
        self._bindings.clear()

    def run(self, x: Any) -> Any:
        images = x[INPUT]
        if (binding := self._bindings.get(len(images))) is None:
            binding = self._bindings.setdefault(len(images), self._session.io_binding())
            scores = np.empty((len(images), self._session.get_outputs()[0].shape[1]), np.float32)
            binding.bind_ortvalue_output(OUTPUT, onnxruntime.OrtValue.ortvalue_from_numpy(scores))
        binding.bind_cpu_input(INPUT, images)
        self._session.run_with_iobinding(binding)
        return binding

    def fetch(self, y: Any) -> NDArray[np.float32]:
        # Copied: the next call writes into the same array.
        return y.copy_outputs_to_cpu()[0]


class CudaRuntime(CpuRuntime):
    """See `serve.runtimes.Runtime`. Inputs and outputs stay in device memory; only `place` and `fetch` copy."""

    @staticmethod
    def place_once(images: NDArray[np.uint8]) -> onnxruntime.OrtValue:
        """New device memory with the images."""
        return onnxruntime.OrtValue.ortvalue_from_numpy(images, "cuda", 0)

    def place(self, images: NDArray[np.uint8]) -> Any:
        return self.place_once(images)

    def run(self, x: Any) -> Any:
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(INPUT, x)
        binding.bind_output(OUTPUT, "cuda")
        self._session.run_with_iobinding(binding)
        return binding

    def synchronise(self, y: Any) -> None:
        y.synchronize_outputs()

    def fetch(self, y: Any) -> NDArray[np.float32]:
        return y.copy_outputs_to_cpu()[0]


class Bound(NamedTuple):
    """What is made once for a batch size: an input in device memory, the binding to it, and the options of its runs."""

    images: onnxruntime.OrtValue
    binding: onnxruntime.IOBinding
    options: onnxruntime.RunOptions


class BoundCudaRuntime(CudaRuntime):
    """See `serve.runtimes.Runtime`. Inputs and outputs of each batch size are always at the same addresses.

    A CUDA graph, which the provider captures in a session's first runs, replays the kernels on these addresses.
    """

    def __init__(self, name: str, session: onnxruntime.InferenceSession, model: Path, *, captured: bool) -> None:
        super().__init__(name, session, model)
        self._captured = captured
        self._bound: dict[int, Bound] = {}

    def _use(self, session: onnxruntime.InferenceSession) -> None:
        super()._use(session)
        self._bound.clear()

    def place(self, images: NDArray[np.uint8]) -> Any:
        if (bound := self._bound.get(len(images))) is None:
            bound = self._bound.setdefault(len(images), self._bind(images))
        bound.images.update_inplace(images)
        return bound

    def run(self, x: Any) -> Any:
        self._session.run_with_iobinding(x.binding, x.options)
        return x.binding

    def _bind(self, images: NDArray[np.uint8]) -> Bound:
        found = self.place_once(images)
        shape = [len(images), self._session.get_outputs()[0].shape[1]]
        scores = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, "cuda", 0)
        binding, options = self._session.io_binding(), onnxruntime.RunOptions()
        binding.bind_ortvalue_input(INPUT, found)
        binding.bind_ortvalue_output(OUTPUT, scores)
        if self._captured:
            # One graph a batch size.
            options.add_run_config_entry("gpu_graph_id", str(len(images)))
        return Bound(found, binding, options)


def open_session(
    name: str,
    model: Path,
    deployment: Deployment,
    *providers: Provider,
    arena: bool = True,
    bound: bool = False,
    captured: bool = False,
) -> CpuRuntime:
    """The runtime `name`: a session on the first provider; the others run the operators that it does not support.

    Input and output of each batch size are `bound` once, which a `captured` CUDA graph needs.

    Raises CannotRun if the first provider is not available.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = deployment.threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = arena
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    if deployment.device == "cuda":
        # It names missing libraries on standard output, which is reserved for events.
        with contextlib.redirect_stdout(sys.stderr):
            onnxruntime.preload_dlls()
    lacking = CannotRun(
        f"ONNX Runtime {onnxruntime.__version__} cannot use {providers[0][0]}: no GPU, or missing libraries of CUDA, "
        "cuDNN or TensorRT (named in the lines above); use --device cpu"
    )
    try:
        session = onnxruntime.InferenceSession(str(model), options, providers=list(providers), enable_fallback=0)
    except RuntimeError as error:
        raise (lacking if deployment.device == "cuda" and "Please install" in str(error) else error) from error
    if session.get_providers()[0] != providers[0][0]:
        raise lacking
    if deployment.device == "cuda":
        if bound or captured:
            return BoundCudaRuntime(name, session, model, captured=captured)
        return CudaRuntime(name, session, model)
    return (BoundRuntime if bound else CpuRuntime)(name, session, model)
