"""TorchScript, and programs of `torch.export` (.pt2): a module around the model has the way in and out."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.adopt import Found, only, takes
from export.frameworks import pytorch
from medserve.errors import BadInput
from medserve.models import Contract

REQUIRES = ("torch",)
READS = (".pt", ".pth", ".ts", ".pt2")
WRITES = ("torchscript", "onnx", "aotinductor")


class Adapter(torch.nn.Module):
    """The model between uint8 (N, H, W, C) images and float32 (N, classes) probabilities."""

    factor: torch.Tensor
    offset: torch.Tensor

    def __init__(self, network: Any, contract: Contract) -> None:
        super().__init__()
        self.network, self.contract = network, contract
        shape = (contract.channels, 1, 1) if contract.layout == "nchw" else (contract.channels,)
        for name in ("factor", "offset"):
            self.register_buffer(name, torch.tensor(getattr(contract, name), dtype=torch.float32).reshape(shape))
        # A program of torch.export is in evaluation mode, and refuses to be put into any.
        self.training = False

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """See the class."""
        contract, x = self.contract, image
        # Bytes are moved, not the four times as many of floats.
        if contract.layout == "nchw":
            x = x.permute(0, 3, 1, 2).contiguous()
        if contract.takes == "float32":
            x = x.to(torch.float32) * self.factor - self.offset
        y = _tensor(self.network(x), contract.output).flatten(1)
        if contract.gives == "logits":
            y = y.sigmoid() if contract.activation == "sigmoid" else y.softmax(1)
        return torch.cat([1 - y, y], 1) if contract.outputs == 1 else y


def inspect(path: Path, output: str = "") -> Found:
    """See `export.adopt`. TorchScript does not say the shape of its input."""
    network, program = _load(path)
    parameters = sum(value.numel() for value in network.parameters())
    if program is None:
        inputs = [value.debugName() for value in network.graph.inputs()][1:]
        return Found(only(path, "input", inputs), output, None, "float32", None, parameters)
    names = program.graph_signature.user_inputs
    name = only(path, "input", [str(known) for known in names])
    value = next(node.meta["val"] for node in program.graph.nodes if node.name == name)
    shape = tuple(side if isinstance(side, int) else None for side in value.shape)
    return Found(name, output, shape, takes(path, str(value.dtype).removeprefix("torch.")), None, parameters)


def scores(path: Path, contract: Contract, x: NDArray[np.float32] | NDArray[np.uint8]) -> NDArray[np.float32]:
    """See `export.adopt`."""
    network, _ = _load(path)
    with torch.inference_mode():
        return _tensor(network(torch.from_numpy(x)), contract.output).flatten(1).float().numpy()


def write(path: Path, contract: Contract, form: str, out: Path) -> None:
    """See `export.adopt`."""
    network, _ = _load(path)
    pytorch.write(Adapter(network, contract), (contract.size, contract.size, contract.channels), form, out)


def _load(path: Path) -> tuple[Any, Any]:
    """The module, and the program of torch.export that it is from, null for TorchScript."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\..*deprecated", category=DeprecationWarning)
        try:
            if path.suffix == ".pt2":
                program = torch.export.load(path)
                return program.module(), program
            return torch.jit.load(str(path), map_location="cpu").eval(), None
        except Exception as error:  # torch raises anything over other files
            raise BadInput(
                f"{path}: neither TorchScript nor a program of torch.export; weights without their code cannot be run: "
                "write the module by torch.export.save, torch.jit.save or torch.onnx.export "
                f"({str(error).splitlines()[0][:200]})"
            ) from None


def _tensor(given: Any, name: str) -> torch.Tensor:
    """The output of that name, or the only one."""
    if isinstance(given, dict):
        return given[name] if name else next(iter(given.values()))
    return given[int(name or 0)] if isinstance(given, list | tuple) else given
