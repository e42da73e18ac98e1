"""What tests of networks do by PyTorch's own means."""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from medserve import plugins
from medserve.models import Architecture
from train.models.layers.pytorch import StochasticDepth


def steps(network: torch.nn.Module, images: NDArray[np.uint8], labels: NDArray[np.int64], rate: float) -> None:
    """One step of plain SGD on each of `images`, uint8 (steps, N, H, W, C), and `labels`, (steps, N)."""
    optimiser = torch.optim.SGD(network.parameters(), lr=rate)
    network.train()
    for batch, targets in zip(images, labels, strict=True):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network(torch.from_numpy(batch)), torch.from_numpy(targets)).backward()
        optimiser.step()


def count(architecture: Architecture, classes: int) -> tuple[int, int]:
    """Trainable numbers, and multiply-adds of one image of 224 px; nothing is computed, no memory taken."""
    with torch.device("meta"):
        network = plugins.load(f"train.models.{architecture.family}", "pytorch").build(architecture, classes)
        images = torch.zeros((1, 224, 224, 3), dtype=torch.uint8)
    total = 0

    def add(module: torch.nn.Conv2d | torch.nn.Linear, _inputs: object, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel() * math.prod(module.weight.shape[1:])

    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(add)
    network.eval()(images)
    return sum(value.numel() for value in network.parameters()), total


def stochastic_depth(rate: float, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Stochastic depth in training, of float32 (N, H, W, C)."""
    return StochasticDepth(rate).train()(torch.from_numpy(x)).numpy()
