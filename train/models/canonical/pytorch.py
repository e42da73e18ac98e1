"""PyTorch's own state dictionary is the canonical form, less its batch counters."""

import numpy as np
import torch
from numpy.typing import NDArray

from medserve.errors import BadInput

REQUIRES = ("torch",)


def read(network: torch.nn.Module) -> dict[str, NDArray[np.float32]]:
    """Canonical weights of a network, copied to the host."""
    state = network.state_dict()
    return {name: value.detach().cpu().numpy().copy() for name, value in state.items() if not _counter(name)}


def write(network: torch.nn.Module, weights: dict[str, NDArray[np.float32]]) -> None:
    """Put canonical weights into a network. Raises BadInput that lists the first names and shapes that do not fit."""
    state = {name: value for name, value in network.state_dict().items() if not _counter(name)}
    wrong = sorted(
        name
        for name in state.keys() | weights.keys()
        if name not in state or name not in weights or tuple(state[name].shape) != weights[name].shape
    )
    if wrong:
        raise BadInput(f"weights do not fit the network; first differences: {', '.join(wrong[:5])}")
    network.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in weights.items()}, strict=False)


def _counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")
