"""PyTorch to TorchScript (traced and frozen), through `torch.export` to machine code (AOTInductor) and to ONNX."""

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.frameworks import Weights, build
from medserve import plugins
from medserve.errors import CannotRun
from medserve.models import Checkpoint, Task
from medserve.spec import Device, Precision
from medserve.tables import FOR_GPU, INPUT, OPSET, OUTPUT, SINGLE

REQUIRES = ("torch",)
WRITES = ("torchscript", "onnx", "aotinductor")
INT8 = ("onnx",)
FLOAT16 = ("torchscript", "onnx", "aotinductor")
BFLOAT16 = ("torchscript", "aotinductor")
TF32 = ("torchscript", "onnx", "aotinductor")

BATCH_IS_FREE = {0: torch.export.Dim("batch")}


class Classifier(torch.nn.Module):
    """The network with its softmax, or its sigmoid per label: what is deployed."""

    def __init__(self, network: torch.nn.Module, task: Task) -> None:
        super().__init__()
        self.network = network
        self.task = task

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """uint8 (N, H, W, C) to float32 (N, classes) probabilities."""
        logits: torch.Tensor = self.network(image).float()
        return logits.sigmoid() if self.task == "multi-label" else logits.softmax(1)


def export(
    checkpoint: Checkpoint,
    weights: Weights,
    form: str,
    path: Path,
    precision: Precision = "float32",
    device: Device = "cpu",
) -> None:
    """See `export.frameworks`."""
    for_gpu = form == "aotinductor" and device == "cuda"
    if for_gpu and not torch.cuda.is_available():
        raise CannotRun(f"torch {torch.__version__} sees no CUDA device to compile for; use --device cpu")
    network = build("pytorch", checkpoint, weights)
    if precision in ("bfloat16", "float16"):
        _reduce(network, getattr(torch, precision))
    classifier = Classifier(network, checkpoint.task).eval()
    write(classifier, (checkpoint.size, checkpoint.size, checkpoint.channels), form, path)
    if for_gpu:
        _for_gpu(classifier, (checkpoint.size, checkpoint.size, checkpoint.channels), path, precision)


def write(classifier: torch.nn.Module, shape: tuple[int, int, int], form: str, path: Path) -> None:
    """Write a module from uint8 (N, H, W, C) images of that shape to probabilities. See `export.frameworks`."""
    # Two images, for a batch of one is a constant to some exporters.
    example = torch.zeros((2, *shape), dtype=torch.uint8)
    {"torchscript": _torchscript, "onnx": _onnx, "aotinductor": _aotinductor}[form](classifier, example, path)


def scores(checkpoint: Checkpoint, weights: Weights, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """See `export.frameworks`."""
    with torch.inference_mode():
        classifier = Classifier(build("pytorch", checkpoint, weights), checkpoint.task).eval()
        return classifier(torch.from_numpy(images)).numpy()


def _reduce(network: torch.nn.Module, dtype: torch.dtype) -> None:
    """All in 16 bits but the normalisation of the image, whose bytes would not fit, and the activation."""
    network.to(dtype)
    network.normalise.float()
    network.normalise.register_forward_hook(lambda _module, _images, normalised: normalised.to(dtype))


def _torchscript(classifier: torch.nn.Module, example: torch.Tensor, path: Path) -> None:
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\..*deprecated", category=DeprecationWarning)
        torch.jit.freeze(torch.jit.trace(classifier, example)).save(str(path))


def _aotinductor(classifier: torch.nn.Module, example: torch.Tensor, path: Path) -> None:
    """Machine code for any batch, and for one image, whose weights are packed for that batch and for one thread."""
    # Frozen, weights become constants of the code in the layout that its kernels want. The number of threads is not
    # one of them: it is the deployment's. A profiler that does not run costs nanoseconds per kernel. Frozen code for a
    # free batch of one channel gives wrong scores: the layout of such images is ambiguous (pytorch/pytorch#121400).
    settings = {
        "freezing": example.shape[-1] > 1,
        "cpp.dynamic_threads": True,
        "cpp.enable_kernel_profile": sys.platform == "linux",
    }
    single = path.parents[1] / SINGLE / path.name
    _compile(classifier, example, BATCH_IS_FREE, path, settings)
    # With another number of threads oneDNN may want another layout, and then packs the weights again in every call, by
    # code that is a hundred times as slow (tests/upstream/pytorch_packed_weights.py).
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _compile(classifier, example[:1], None, single, settings)
    finally:
        torch.set_num_threads(threads)


def _for_gpu(classifier: torch.nn.Module, shape: tuple[int, int, int], path: Path, precision: Precision) -> None:
    """Code for this machine's GPU, beside that for its processor."""
    # What the code may use of TF32 is decided when it is compiled.
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    images = torch.zeros((2, *shape), dtype=torch.uint8, device="cuda")
    _compile(classifier.cuda(), images, BATCH_IS_FREE, path.parents[1] / FOR_GPU / path.name, {"max_autotune": True})


def _compile(
    classifier: torch.nn.Module, images: torch.Tensor, free: Any, target: Path, settings: dict[str, Any]
) -> None:
    """Compile for the device and the shape of the images, with the axes that are `free`."""
    target.parent.mkdir(exist_ok=True)
    try:
        with torch.inference_mode():
            program = torch.export.export(classifier, (images,), dynamic_shapes={"image": free})
            torch._inductor.aoti_compile_and_package(program, package_path=str(target), inductor_configs=settings)
    except (RuntimeError, torch._inductor.exc.InductorError) as error:
        raise CannotRun(f"AOTInductor cannot compile the network here (it needs a C++ compiler): {error}") from error


def _onnx(classifier: torch.nn.Module, example: torch.Tensor, path: Path) -> None:
    plugins.need("onnxscript", "PyTorch to ONNX")
    try:
        program = torch.onnx.export(
            classifier,
            (example,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
            dynamic_shapes={"image": BATCH_IS_FREE},
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        raise CannotRun(f"the ONNX exporter of PyTorch refused the network: {error}") from error
    program.save(path)
