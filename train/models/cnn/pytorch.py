"""The small CNN in PyTorch."""

import torch
from torch import nn

from medserve.models import Architecture
from train.models import Conv
from train.models.cnn import stages
from train.models.layers.pytorch import Normalise, batch_norm, conv, head, initialise


class Cnn(nn.Module):
    """uint8 (N, H, W, C) images to float32 logits (N, classes)."""

    def __init__(
        self, architecture: Architecture, classes: int, seed: int = 0, hidden: int = 0, drop_out: float = 0.0
    ) -> None:
        super().__init__()
        self.normalise = Normalise(architecture)
        self.stages = nn.ModuleList(nn.Sequential(*map(ConvNorm, stage)) for stage in stages(architecture))
        self.fc = head(architecture.features, classes, hidden, drop_out)
        initialise(self, seed)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.normalise(images)
        for index, stage in enumerate(self.stages):
            x = stage(nn.functional.max_pool2d(x, 2) if index else x)
        return self.fc(x.mean((2, 3)))


class ConvNorm(nn.Module):
    """3x3 convolution, batch norm, ReLU; height and width stay the same."""

    def __init__(self, plan: Conv) -> None:
        super().__init__()
        self.conv = conv(plan)
        self.bn = batch_norm(plan.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu(self.bn(self.conv(x)))


build = Cnn
