"""ONNX Runtime on its CPU or CUDA execution provider."""

from pathlib import Path
from typing import Literal

from medserve.spec import Deployment
from serve.runtimes import RuntimeOptions, _onnxruntime, read_options

REQUIRES = ("onnxruntime",)
READS = ("onnx",)
CUDA = ("nvidia-cudnn-cu13",)
CUDA_PACKAGES = ("onnxruntime-gpu[cuda,cudnn]",)
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
        "cpu",
    ),
    (
        "graph",
        "captured",
        "a CUDA graph starts all kernels of a batch size at once",
        "https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html#using-cuda-graphs-preview",
        "cuda",
    ),
    (
        "layout",
        "channels last",
        "tensor cores read channels-last maps; others are transposed before and after each convolution",
        "https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html#prefer_nhwc",
        "cuda",
    ),
    (
        "search",
        "heuristic",
        "cuDNN's guess of the best algorithm may have a smaller workspace than the one that its search finds",
        "https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html#cudnn_conv_algo_search",
        "cuda",
    ),
)


class Options(RuntimeOptions, frozen=True, kw_only=True):
    """`arena`: the session's own allocator on the processor; `binding`: what is bound once for each batch size.

    On a GPU: `graph`, whether kernels are started one by one; `layout` of its convolutions; cuDNN's `search`.
    """

    arena: Literal["on", "off"] = "on"
    binding: Literal["none", "outputs"] = "none"
    graph: Literal["none", "captured"] = "none"
    layout: Literal["as exported", "channels last"] = "as exported"
    search: Literal["exhaustive", "heuristic"] = "exhaustive"


def load(model: Path, _classes: int, deployment: Deployment) -> _onnxruntime.CpuRuntime:
    """A session on the deployment's device only.

    Raises CannotRun if that device is not available, BadInput for unknown options.
    """
    options = read_options(deployment, Options)
    provider, captured = _onnxruntime.CPU, options.graph == "captured"
    if deployment.device == "cuda":
        provider = _onnxruntime.cuda(
            deployment,
            enable_cuda_graph=str(int(captured)),
            prefer_nhwc=str(int(options.layout == "channels last")),
            cudnn_conv_algo_search=options.search.upper(),
        )
    arena, bound = options.arena == "on", options.binding == "outputs"
    return _onnxruntime.open_session(
        "onnx_runtime", model, deployment, provider, arena=arena, bound=bound, captured=captured
    )
