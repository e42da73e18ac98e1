"""ONNX Runtime on its CPU or CUDA execution provider."""

from pathlib import Path
from typing import Literal

from medserve.spec import Deployment
from serve.runtimes import RuntimeOptions, _onnxruntime, read_options

REQUIRES = ("onnxruntime",)
READS = ("onnx",)
TUNING = (
    "heap",
    (
        "binding",
        "outputs",
        "outputs are bound to the same memory in every call",
        "https://onnxruntime.ai/docs/performance/tune-performance/iobinding.html",
    ),
    (
        "arena",
        "off",
        "activations come from the heap, which may reuse them sooner",
        "https://onnxruntime.ai/docs/api/python/api_summary.html#onnxruntime.SessionOptions.enable_cpu_mem_arena",
    ),
)


class Options(RuntimeOptions, frozen=True, kw_only=True):
    """`arena`: the session's own allocator on the processor; `binding`: what is bound once for each batch size."""

    arena: Literal["on", "off"] = "on"
    binding: Literal["none", "outputs"] = "none"


def load(model: Path, _classes: int, deployment: Deployment) -> _onnxruntime.CpuRuntime:
    """A session on the deployment's device only.

    Raises CannotRun if that device is not available, BadInput for unknown options.
    """
    options = read_options(deployment, Options)
    provider = _onnxruntime.CUDA if deployment.device == "cuda" else _onnxruntime.CPU
    arena, bound = options.arena == "on", options.binding == "outputs"
    return _onnxruntime.open_session("onnx_runtime", model, deployment, provider, arena=arena, bound=bound)
