"""PyTorch to TorchScript (traced and frozen) and to ONNX (the exporter that goes through `torch.export`)."""

import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from medserve import plugins
from medserve.errors import CannotRun
from medserve.spec import Checkpoint
from medserve.tables import ARCHITECTURES, INPUT, OPSET, OUTPUT, pick

REQUIRES = ("torch",)
WRITES = ("torchscript", "onnx")


class Classifier(torch.nn.Module):
    """The network with its softmax: what is deployed."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """uint8 (N, H, W, C) to float32 (N, classes) probabilities."""
        return self.network(image).softmax(1)


def export(checkpoint: Checkpoint, weights: dict[str, NDArray[np.float32]], form: str, path: Path) -> None:
    """See `export.frameworks`."""
    architecture = pick(ARCHITECTURES, "architecture", checkpoint.architecture)
    network = plugins.load(f"train.models.{architecture.family}", "pytorch").build(
        architecture, len(checkpoint.classes), hidden=checkpoint.recipe.hidden
    )
    plugins.load("train.models.canonical", "pytorch").write(network, weights)
    classifier = Classifier(network).eval()
    # Two images, for a batch of one is a constant to some exporters.
    example = torch.zeros((2, checkpoint.size, checkpoint.size, 3), dtype=torch.uint8)
    {"torchscript": _torchscript, "onnx": _onnx}[form](classifier, example, path)


def _torchscript(classifier: torch.nn.Module, example: torch.Tensor, path: Path) -> None:
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\..*deprecated", category=DeprecationWarning)
        torch.jit.freeze(torch.jit.trace(classifier, example)).save(str(path))


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
            dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        raise CannotRun(f"the ONNX exporter of PyTorch refused the network: {error}") from error
    program.save(path)
