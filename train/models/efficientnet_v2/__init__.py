"""EfficientNetV2 (Tan & Le, 2021): inverted bottlenecks, in the first stages fused into full convolutions.

A block expands its channels by the factor `expansion` and projects them back without an activation. If input and output
have the same shape, the block is residual, with stochastic depth whose rate grows linearly with the index of the block.
Squeeze-and-excitation follows each depthwise convolution, with a quarter of the block's *input* channels. All
activations are SiLU; batch norm's epsilon is 1e-3. Names are torchvision's: `features.0.0`,
`features.4.0.block.2.fc1`, `classifier.1`.
"""

from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

from medserve.models import Architecture
from train.models import Conv

EPSILON = 1e-3


class Squeeze(NamedTuple):
    """Squeeze-and-excitation (Hu et al., 2018): scales each channel by a function of all channel averages."""

    reduce: Conv
    expand: Conv


class Block(NamedTuple):
    """The layers of a block, whether it is residual, and its rate of stochastic depth."""

    layers: list[Conv | Squeeze]
    residual: bool
    rate: float


def stem(architecture: Architecture) -> Conv:
    """The first convolution."""
    return Conv(architecture.channels, architecture.stem, architecture.first_kernel, stride=2)


def stages(architecture: Architecture) -> Iterator[list[Block]]:
    """The blocks of each stage."""
    channels, rates = architecture.stem, architecture.drop_rates()
    for index, (width, depth, stride, expansion) in enumerate(architecture.stages()):
        blocks = []
        for place in range(depth):
            step, wide, squeezed = 1 if place else stride, channels * expansion, max(1, channels // 4)
            projection = Conv(wide, width, 1, activation=False)
            layers: list[Conv | Squeeze]
            if index >= architecture.fused:
                depthwise = Conv(wide, wide, 3, step, groups=wide)
                squeeze = Squeeze(Conv(wide, squeezed, 1, bias=True), Conv(squeezed, wide, 1, bias=True))
                layers = [Conv(channels, wide, 1), depthwise, squeeze, projection]
            elif expansion == 1:
                layers = [Conv(channels, width, 3, step)]
            else:
                layers = [Conv(channels, wide, 3, step), projection]
            blocks.append(Block(layers, step == 1 and channels == width, next(rates)))
            channels = width
        yield blocks


def maps(architecture: Architecture, size: int) -> Iterator[tuple[Conv, int]]:
    """Each convolution with the side of its input; squeeze-and-excitation reads averages, maps of one pixel."""
    first = stem(architecture)
    yield first, size
    side = first.output(size)
    for block in chain.from_iterable(stages(architecture)):
        for layer in block.layers:
            if isinstance(layer, Squeeze):
                yield from ((conv, 1) for conv in layer)
                continue
            yield layer, side
            side = layer.output(side)
    yield Conv(architecture.widths[-1], architecture.features, 1), side
