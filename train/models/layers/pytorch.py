"""Layers of all families in PyTorch."""

import torch
from torch import nn

from medserve.models import Architecture
from train.models import Conv


class Normalise(nn.Module):
    """uint8 (N, H, W, C) images to float32 (N, C, H, W), normalised with the architecture's mean and deviation."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(architecture.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(architecture.std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # A permuted view of NHWC bytes is PyTorch's channels-last layout, so nothing is copied.
        return (images.permute(0, 3, 1, 2).to(self.mean.dtype) / 255.0 - self.mean) / self.std


class StochasticDepth(nn.Module):
    """Stochastic depth (Huang et al., 2016): drops the branch for a random share of the images, scales the rest."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.rate == 0.0:
            return x
        return x * nn.functional.dropout(x.new_ones((len(x), 1, 1, 1)), self.rate)


class Linear(nn.Linear):
    """Drop-out, then the linear layer to the logits."""

    def __init__(self, features: int, classes: int, drop_out: float) -> None:
        super().__init__(features, classes)
        self.drop_out = drop_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.dropout(x, self.drop_out, self.training))


class DenseHead(nn.Sequential):
    """A dense layer, ReLU, and a `Linear`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dense, linear = self
        return linear(nn.functional.relu(dense(x)))


def conv(plan: Conv) -> nn.Conv2d:
    """The convolution of a plan."""
    channels, width, kernel, stride, groups, bias, _ = plan
    return nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, groups=groups, bias=bias)


def batch_norm(width: int, epsilon: float = 1e-5) -> nn.BatchNorm2d:
    """Batch norm that updates its running statistics with a tenth of each batch."""
    return nn.BatchNorm2d(width, eps=epsilon, momentum=0.1)


def head(features: int, classes: int, hidden: int, drop_out: float) -> nn.Module:
    """From features to logits: a linear layer, after a dense layer of `hidden` units unless that is 0."""
    if not hidden:
        return Linear(features, classes, drop_out)
    return DenseHead(nn.Linear(features, hidden), Linear(hidden, classes, drop_out))


def initialise(network: nn.Module, seed: int) -> None:
    """Seed the weights of a network, and put it in channels-last layout, the fastest one for convolutions."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01, generator=generator)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    network.to(memory_format=torch.channels_last)
