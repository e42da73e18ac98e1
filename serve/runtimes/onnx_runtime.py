"""ONNX Runtime on its CPU or CUDA execution provider."""

from pathlib import Path

from medserve.spec import Deployment
from serve.runtimes import _onnxruntime

REQUIRES = ("onnxruntime",)
READS = ("onnx",)


def load(model: Path, _classes: int, deployment: Deployment) -> _onnxruntime.CpuRuntime:
    """A session on the deployment's device only. Raises CannotRun if that device is not available."""
    provider = _onnxruntime.CUDA if deployment.device == "cuda" else _onnxruntime.CPU
    return _onnxruntime.open_session("onnx_runtime", model, deployment, provider)
