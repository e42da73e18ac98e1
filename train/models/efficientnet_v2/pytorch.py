"""EfficientNetV2 in PyTorch."""

import torch
from torch import nn

from medserve.spec import Architecture
from train.models.layers.pytorch import Normalise, StochasticDepth, batch_norm, conv, head, initialise

REQUIRES = ("torch",)

EPSILON = 1e-3


class EfficientNetV2(nn.Module):
    """uint8 (N, H, W, C) images to float32 logits (N, classes)."""

    def __init__(self, architecture: Architecture, classes: int, hidden: int, drop_out: float) -> None:
        super().__init__()
        self.normalise = Normalise(architecture)
        self.features = nn.Sequential(conv_norm(3, architecture.stem, 3, stride=2))
        channels, rates = architecture.stem, architecture.drop_rates()
        for index, (width, depth, stride, expansion) in enumerate(architecture.stages()):
            stage = nn.Sequential()
            for place in range(depth):
                make = fused_block if index < architecture.fused else block
                stage.append(make(channels, width, expansion, stride if place == 0 else 1, next(rates)))
                channels = width
            self.features.append(stage)
        self.features.append(conv_norm(channels, architecture.features, 1))
        last = head(architecture.features, classes, hidden, drop_out)
        self.classifier = nn.Sequential(nn.Dropout(architecture.drop_out), last)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.features(self.normalise(images))
        return self.classifier(x.mean((2, 3)))


class Residual(nn.Module):
    """The layers of a block, with a residual connection if input and output have the same shape."""

    def __init__(self, block: nn.Sequential, shortcut: bool, rate: float) -> None:
        super().__init__()
        self.block = block
        self.shortcut = shortcut
        self.stochastic_depth = StochasticDepth(rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.block(x)
        return x + self.stochastic_depth(y) if self.shortcut else y


def fused_block(channels: int, width: int, expansion: int, stride: int, rate: float) -> Residual:
    """A 3x3 convolution that expands the channels and a 1x1 that projects them; without expansion a single 3x3."""
    wide = channels * expansion
    if expansion == 1:
        layers = nn.Sequential(conv_norm(channels, width, 3, stride))
    else:
        layers = nn.Sequential(conv_norm(channels, wide, 3, stride), conv_norm(wide, width, 1, activation=False))
    return Residual(layers, stride == 1 and channels == width, rate)


def block(channels: int, width: int, expansion: int, stride: int, rate: float) -> Residual:
    """1x1 convolution that expands the channels, depthwise 3x3, squeeze-and-excitation, 1x1 that projects them."""
    wide = channels * expansion
    layers = nn.Sequential(
        conv_norm(channels, wide, 1),
        conv_norm(wide, wide, 3, stride, groups=wide),
        SqueezeExcitation(wide, max(1, channels // 4)),
        conv_norm(wide, width, 1, activation=False),
    )
    return Residual(layers, stride == 1 and channels == width, rate)


class SqueezeExcitation(nn.Module):
    """Squeeze-and-excitation (Hu et al., 2018): scales each channel by a function of all channel averages."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = conv(channels, squeezed, 1, bias=True)
        self.fc2 = conv(squeezed, channels, 1, bias=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = nn.functional.silu(self.fc1(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.fc2(weights))


def conv_norm(
    channels: int, width: int, kernel: int, stride: int = 1, groups: int = 1, activation: bool = True
) -> nn.Sequential:
    """Convolution, batch norm, SiLU."""
    layers = nn.Sequential(conv(channels, width, kernel, stride, groups), batch_norm(width, EPSILON))
    return layers.append(nn.SiLU()) if activation else layers


def build(architecture: Architecture, classes: int, seed: int = 0, hidden: int = 0, drop_out: float = 0.0) -> nn.Module:
    """The network with seeded initial weights, in training mode."""
    return initialise(EfficientNetV2(architecture, classes, hidden, drop_out), seed)
