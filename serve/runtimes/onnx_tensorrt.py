"""ONNX Runtime on its TensorRT execution provider, which compiles a batch size when it is run the first time."""

import os
from pathlib import Path

from medserve.errors import CannotRun
from medserve.spec import Deployment
from serve.runtimes import _onnxruntime

REQUIRES = ("onnxruntime",)
READS = ("onnx",)
DEVICES = ("cuda",)
LIBRARIES = ("nvinfer",)


def load(model: Path, _classes: int, deployment: Deployment) -> _onnxruntime.CpuRuntime:
    """A session in full float32. Raises CannotRun without a GPU or without TensorRT."""
    if deployment.device != "cuda":
        raise CannotRun("TensorRT runs on a GPU only; use --device cuda, or the runtime onnx_runtime")
    # TensorRT's tactics would take TF32, and this is the only way to forbid it.
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
    provider = ("TensorrtExecutionProvider", {"trt_fp16_enable": "0", "trt_int8_enable": "0"})
    # What TensorRT has no kernel for stays on the GPU.
    return _onnxruntime.open_session("onnx_tensorrt", model, deployment, provider, _onnxruntime.CUDA)
