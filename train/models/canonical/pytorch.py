"""Canonical weights of PyTorch networks: the state dictionary without its batch counters."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from train.models.canonical import check_fit

REQUIRES = ("torch",)


def read(network: torch.nn.Module) -> dict[str, NDArray[np.float32]]:
    """See `train.models.canonical`."""
    state = network.state_dict()
    return {name: value.detach().cpu().numpy().copy() for name, value in state.items() if not _is_counter(name)}


def write(network: torch.nn.Module, weights: dict[str, NDArray[np.float32]]) -> None:
    """See `train.models.canonical`."""
    state = {name: value for name, value in network.state_dict().items() if not _is_counter(name)}
    check_fit({name: tuple(value.shape) for name, value in state.items()}, weights)
    network.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in weights.items()}, strict=False)


def outputs(network: torch.nn.Module, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """See `train.models.canonical`."""
    captured: dict[str, NDArray[np.float32]] = {}

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


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")
