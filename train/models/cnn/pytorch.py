"""The small CNN in PyTorch."""

import torch
from torch import nn

from medserve.spec import Architecture
from train.models.layers.pytorch import Normalise, batch_norm, conv, head, initialise

REQUIRES = ("torch",)


class Cnn(nn.Module):
    """uint8 (N, H, W, C) images to float32 logits (N, classes)."""

    def __init__(self, architecture: Architecture, classes: int, hidden: int, drop_out: float) -> None:
        super().__init__()
        self.normalise = Normalise(architecture)
        self.stages = nn.ModuleList()
        channels = 3
        for width, depth in zip(architecture.widths, architecture.depths, strict=True):
            stage = nn.ModuleList()
            for _ in range(depth):
                stage.append(ConvNorm(channels, width))
                channels = width
            self.stages.append(stage)
        self.fc = head(channels, classes, hidden, drop_out)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.normalise(images)
        for index, stage in enumerate(self.stages):
            if index > 0:
                x = nn.functional.max_pool2d(x, 2)
            for layer in stage:
                x = layer(x)
        return self.fc(x.mean((2, 3)))


class ConvNorm(nn.Module):
    """3x3 convolution, batch norm, ReLU; height and width stay the same."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = conv(channels, width, 3)
        self.bn = batch_norm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu(self.bn(self.conv(x)))


def build(architecture: Architecture, classes: int, seed: int = 0, hidden: int = 0, drop_out: float = 0.0) -> nn.Module:
    """The network with seeded initial weights, in training mode."""
    return initialise(Cnn(architecture, classes, hidden, drop_out), seed)
