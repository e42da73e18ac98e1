"""Residual networks (He et al., 2016): a 7x7 stem, four stages of blocks with shortcuts, global average, a linear head.

A basic block has two 3x3 convolutions; a bottleneck block, with an expansion above 1, has 1x1, 3x3 and 1x1. The first
block of a stage has its stride in the first 3x3 convolution (v1.5, common today) or, in a bottleneck with
`stride_first`, in the first 1x1 (the original). Names are torchvision's: `layer1.0.conv1`, `layer1.0.downsample.0`,
`fc`.
"""

from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

from medserve.models import Architecture
from train.models import Conv


class Block(NamedTuple):
    """The convolutions of a block, and the 1x1 convolution of its shortcut; null where the shortcut is the input."""

    convs: list[Conv]
    shortcut: Conv | None


def stem(architecture: Architecture) -> Conv:
    """The first convolution."""
    return Conv(architecture.channels, architecture.stem, architecture.first_kernel, stride=2)


def stages(architecture: Architecture) -> Iterator[list[Block]]:
    """The blocks of each stage."""
    channels = architecture.stem
    for width, depth, stride, expansion in architecture.stages():
        blocks = []
        for place in range(depth):
            step, wide = 1 if place else stride, width * expansion
            if expansion == 1:
                convs = [Conv(channels, width, 3, step), Conv(width, width, 3, activation=False)]
            else:
                first, second = (step, 1) if architecture.stride_first else (1, step)
                convs = [Conv(channels, width, 1, first), Conv(width, width, 3, second)]
                convs.append(Conv(width, wide, 1, activation=False))
            same = step == 1 and channels == wide
            blocks.append(Block(convs, None if same else Conv(channels, wide, 1, step)))
            channels = wide
        yield blocks


def maps(architecture: Architecture, size: int) -> Iterator[tuple[Conv, int]]:
    """Each convolution with the side of its input; pooling halves it behind the stem."""
    first = stem(architecture)
    yield first, size
    side = (first.output(size) - 1) // 2 + 1
    for block in chain.from_iterable(stages(architecture)):
        if block.shortcut:
            yield block.shortcut, side
        for conv in block.convs:
            yield conv, side
            side = conv.output(side)
