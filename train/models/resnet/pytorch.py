"""Residual networks in PyTorch."""

import torch
from torch import nn

from medserve.models import Architecture
from train.models import resnet
from train.models.layers.pytorch import Normalise, batch_norm, conv, head, initialise


class ResNet(nn.Module):
    """uint8 (N, H, W, C) images to float32 logits (N, classes)."""

    def __init__(
        self, architecture: Architecture, classes: int, seed: int = 0, hidden: int = 0, drop_out: float = 0.0
    ) -> None:
        super().__init__()
        self.normalise = Normalise(architecture)
        self.conv1 = conv(resnet.stem(architecture))
        self.bn1 = batch_norm(architecture.stem)
        self.stages = [f"layer{index + 1}" for index in range(len(architecture.depths))]
        for name, blocks in zip(self.stages, resnet.stages(architecture), strict=True):
            self.add_module(name, nn.Sequential(*map(Block, blocks)))
        self.fc = head(architecture.features, classes, hidden, drop_out)
        initialise(self, seed)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu(self.bn1(self.conv1(self.normalise(images))))
        x = nn.functional.max_pool2d(x, 3, stride=2, padding=1)
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return self.fc(x.mean((2, 3)))


class Block(nn.Module):
    """Convolutions with batch norm, ReLU between them, and a shortcut."""

    def __init__(self, plan: resnet.Block) -> None:
        super().__init__()
        self.depth = len(plan.convs)
        for index, convolution in enumerate(plan.convs, 1):
            self.add_module(f"conv{index}", conv(convolution))
            self.add_module(f"bn{index}", batch_norm(convolution.width))
        projection = plan.shortcut and (conv(plan.shortcut), batch_norm(plan.shortcut.width))
        self.downsample = nn.Sequential(*projection or ())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for index in range(1, self.depth + 1):
            y = self.get_submodule(f"bn{index}")(self.get_submodule(f"conv{index}")(y))
            if index < self.depth:
                y = nn.functional.relu(y)
        return nn.functional.relu(y + self.downsample(x))


build = ResNet
