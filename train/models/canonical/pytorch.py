"""Canonical weights of PyTorch networks: the state dictionary without its batch counters."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from train.models.canonical import Arrays, Axes, from_canonical, to_canonical

REQUIRES = ("torch",)


def read(network: torch.nn.Module) -> Arrays:
    """See `train.models.canonical`."""
    return to_canonical({name: (value.cpu(), axes) for name, (value, axes) in _variables(network).items()})


def write(network: torch.nn.Module, weights: Arrays) -> None:
    """See `train.models.canonical`."""
    for variable, value in from_canonical(_variables(network), weights):
        variable.copy_(torch.from_numpy(value.copy()))


def outputs(network: torch.nn.Module, images: NDArray[np.uint8]) -> Arrays:
    """See `train.models.canonical`."""
    captured: Arrays = {}

    def capture(name: str) -> Callable[..., None]:
        return lambda _module, _inputs, output: captured.update({name: output.cpu().numpy()})

    hooks = [
        module.register_forward_hook(capture(name))
        for name, module in network.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    network.eval()
    with torch.inference_mode():
        network(torch.from_numpy(images))
    for hook in hooks:
        hook.remove()
    return captured


def _variables(network: torch.nn.Module) -> dict[str, tuple[torch.Tensor, Axes]]:
    state = network.state_dict().items()
    return {
        name: (value, tuple(range(value.ndim))) for name, value in state if not name.endswith("num_batches_tracked")
    }
