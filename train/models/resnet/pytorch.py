"""Residual networks in PyTorch."""

import torch
from torch import nn

from medserve.spec import Architecture
from train.models.layers.pytorch import Normalise, batch_norm, conv, head, initialise

REQUIRES = ("torch",)


class ResNet(nn.Module):
    """uint8 (N, H, W, C) images to float32 logits (N, classes)."""

    def __init__(self, architecture: Architecture, classes: int, hidden: int, drop_out: float) -> None:
        super().__init__()
        self.normalise = Normalise(architecture)
        self.conv1 = conv(3, architecture.stem, 7, stride=2)
        self.bn1 = batch_norm(architecture.stem)
        channels = architecture.stem
        for index, (width, depth, stride, expansion) in enumerate(architecture.stages()):
            stage = nn.Sequential()
            for place in range(depth):
                first = stride if place == 0 else 1
                if expansion == 1:
                    stage.append(BasicBlock(channels, width, first))
                else:
                    stage.append(Bottleneck(channels, width, expansion, first, architecture.stride_first))
                channels = width * expansion
            self.add_module(f"layer{index + 1}", stage)
        self.stages = len(architecture.depths)
        self.fc = head(channels, classes, hidden, drop_out)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu(self.bn1(self.conv1(self.normalise(images))))
        x = nn.functional.max_pool2d(x, 3, stride=2, padding=1)
        for index in range(self.stages):
            x = self.get_submodule(f"layer{index + 1}")(x)
        return self.fc(x.mean((2, 3)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(channels, width, 3, stride)
        self.bn1 = batch_norm(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = batch_norm(width)
        self.downsample = projection(channels, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return nn.functional.relu(y + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut; the last convolution expands the width."""

    def __init__(self, channels: int, width: int, expansion: int, stride: int, stride_first: bool) -> None:
        super().__init__()
        self.conv1 = conv(channels, width, 1, stride if stride_first else 1)
        self.bn1 = batch_norm(width)
        self.conv2 = conv(width, width, 3, 1 if stride_first else stride)
        self.bn2 = batch_norm(width)
        self.conv3 = conv(width, width * expansion, 1)
        self.bn3 = batch_norm(width * expansion)
        self.downsample = projection(channels, width * expansion, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.relu(self.bn1(self.conv1(x)))
        y = nn.functional.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return nn.functional.relu(y + self.downsample(x))


def projection(channels: int, width: int, stride: int) -> nn.Sequential:
    """The shortcut: empty if input and output have the same shape, else a 1x1 convolution and batch norm."""
    if stride == 1 and channels == width:
        return nn.Sequential()
    return nn.Sequential(conv(channels, width, 1, stride), batch_norm(width))


def build(architecture: Architecture, classes: int, seed: int = 0, hidden: int = 0, drop_out: float = 0.0) -> nn.Module:
    """The network with seeded initial weights, in training mode."""
    return initialise(ResNet(architecture, classes, hidden, drop_out), seed)
