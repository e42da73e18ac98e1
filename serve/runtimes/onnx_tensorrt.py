"""ONNX Runtime on its TensorRT execution provider, which compiles each batch size when it first runs."""

import os
from pathlib import Path
from typing import Literal

from medserve.spec import Deployment
from serve.runtimes import CacheOptions, _onnxruntime, read_options

REQUIRES = ("onnxruntime",)
READS = ("onnx",)
CUDA = ("tensorrt-cu13", "tensorrt-cu12", "tensorrt")
CUDA_PACKAGES = ("tensorrt-cu13",)
DEVICES = ("cuda",)
LIBRARIES = ("nvinfer",)
CACHES = ("cache",)
TUNING = (
    (
        "graph",
        "captured",
        "a CUDA graph starts all kernels of a batch size at once",
        "https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html#trt_cuda_graph_enable",
        "cuda",
    ),
)


class Options(CacheOptions, frozen=True, kw_only=True):
    """`graph`: whether kernels are started one by one."""

    graph: Literal["none", "captured"] = "none"


def load(model: Path, _classes: int, deployment: Deployment) -> _onnxruntime.CpuRuntime:
    """A session in the artifact's precision. Raises CannotRun if GPU or TensorRT is missing."""
    options = read_options(deployment, Options)
    if deployment.precision != "tf32":
        # TensorRT would choose TF32 kernels; only this variable forbids them.
        os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
    settings = {"trt_fp16_enable": str(int(deployment.precision == "float16")), "trt_int8_enable": "0"}
    if cache := options.cache:
        settings |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": cache}
        settings |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": cache}
    if captured := options.graph == "captured":
        settings["trt_cuda_graph_enable"] = "1"
    provider = ("TensorrtExecutionProvider", settings)
    # Operators without a TensorRT kernel run on the CUDA provider.
    others = _onnxruntime.cuda(deployment)
    return _onnxruntime.open_session("onnx_tensorrt", model, deployment, provider, others, captured=captured)
