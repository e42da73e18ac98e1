"""EfficientNetV2 in PyTorch."""

import torch
from torch import nn

from medserve.models import Architecture
from train.models import Conv, efficientnet_v2
from train.models.efficientnet_v2 import EPSILON, Squeeze, stages, stem
from train.models.layers.pytorch import Normalise, StochasticDepth, batch_norm, conv, head, initialise


class EfficientNetV2(nn.Module):
    """uint8 (N, H, W, C) images to float32 logits (N, classes)."""

    def __init__(
        self, architecture: Architecture, classes: int, seed: int = 0, hidden: int = 0, drop_out: float = 0.0
    ) -> None:
        super().__init__()
        self.normalise = Normalise(architecture)
        self.features = nn.Sequential(
            conv_norm(stem(architecture)),
            *(nn.Sequential(*map(Block, blocks)) for blocks in stages(architecture)),
            conv_norm(Conv(architecture.widths[-1], architecture.features, 1)),
        )
        last = head(architecture.features, classes, hidden, drop_out)
        self.classifier = nn.Sequential(nn.Dropout(architecture.drop_out), last)
        initialise(self, seed)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.features(self.normalise(images))
        return self.classifier(x.mean((2, 3)))


class Block(nn.Module):
    """The layers of a block, with a residual connection if input and output have the same shape."""

    def __init__(self, plan: efficientnet_v2.Block) -> None:
        super().__init__()
        layers = (conv_norm(layer) if isinstance(layer, Conv) else SqueezeExcitation(layer) for layer in plan.layers)
        self.block = nn.Sequential(*layers)
        self.residual = plan.residual
        self.stochastic_depth = StochasticDepth(plan.rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.block(x)
        return x + self.stochastic_depth(y) if self.residual else y


class SqueezeExcitation(nn.Module):
    """See `Squeeze`."""

    def __init__(self, plan: Squeeze) -> None:
        super().__init__()
        self.fc1, self.fc2 = map(conv, plan)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = nn.functional.silu(self.fc1(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.fc2(weights))


def conv_norm(plan: Conv) -> nn.Sequential:
    """Convolution, batch norm, SiLU."""
    layers = nn.Sequential(conv(plan), batch_norm(plan.width, EPSILON))
    return layers.append(nn.SiLU()) if plan.activation else layers


build = EfficientNetV2
