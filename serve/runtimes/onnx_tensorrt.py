"""ONNX Runtime on its TensorRT execution provider, which compiles each batch size when it first runs."""

import os
from pathlib import Path

from medserve.spec import Deployment
from serve.runtimes import CacheOptions, _onnxruntime, read_options

REQUIRES = ("onnxruntime",)
READS = ("onnx",)
DEVICES = ("cuda",)
LIBRARIES = ("nvinfer",)
CACHES = ("cache",)
Options = CacheOptions


def load(model: Path, _classes: int, deployment: Deployment) -> _onnxruntime.CpuRuntime:
    """A session in full float32. Raises CannotRun if GPU or TensorRT is missing."""
    # TensorRT would choose TF32 kernels; only this variable forbids them.
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
    settings = {"trt_fp16_enable": "0", "trt_int8_enable": "0"}
    if cache := read_options(deployment, Options).cache:
        settings |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": cache}
    provider = ("TensorrtExecutionProvider", settings)
    # Operators without a TensorRT kernel run on the CUDA provider.
    return _onnxruntime.open_session("onnx_tensorrt", model, deployment, provider, _onnxruntime.CUDA)
