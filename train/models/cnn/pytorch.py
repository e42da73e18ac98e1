"""The small CNN in PyTorch."""

import torch
from torch import nn

from medserve.spec import Architecture

REQUIRES = ("torch",)


class Cnn(nn.Module):
    """uint8 (N, H, W, C) images to float32 logits (N, classes)."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, architecture: Architecture, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(architecture.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(architecture.std).view(1, 3, 1, 1), persistent=False)
        self.stages = nn.ModuleList()
        channels = 3
        for width, depth in zip(architecture.widths, architecture.depths, strict=True):
            stage = nn.ModuleList()
            for _ in range(depth):
                stage.append(ConvNorm(channels, width))
                channels = width
            self.stages.append(stage)
        self.fc = nn.Linear(channels, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # A permuted view of NHWC bytes is PyTorch's channels-last layout: no copy.
        x = (images.permute(0, 3, 1, 2).float() / 255.0 - self.mean) / self.std
        for index, stage in enumerate(self.stages):
            if index > 0:
                x = nn.functional.max_pool2d(x, 2)
            for layer in stage:
                x = layer(x)
        return self.fc(x.mean((2, 3)))


class ConvNorm(nn.Module):
    """3x3 convolution, batch norm, ReLU; the image keeps its size."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=1e-5, momentum=0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu(self.bn(self.conv(x)))


def build(architecture: Architecture, classes: int, seed: int = 0) -> nn.Module:
    """The network with seeded initial weights, in training mode."""
    network = Cnn(architecture, classes)
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01, generator=generator)
            nn.init.zeros_(module.bias)
    return network.to(memory_format=torch.channels_last)
