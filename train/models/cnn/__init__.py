"""A small CNN: stages of 3x3 convolutions with batch norm, max pooling between stages, global average, linear head."""

from collections.abc import Iterator

from medserve.models import Architecture
from train.models import Conv


def stages(architecture: Architecture) -> list[list[Conv]]:
    """The convolutions of each stage."""
    channels = (architecture.channels, *architecture.widths[:-1])
    return [
        [Conv(width if place else before, width, 3) for place in range(depth)]
        for before, width, depth in zip(channels, architecture.widths, architecture.depths, strict=True)
    ]


def maps(architecture: Architecture, size: int) -> Iterator[tuple[Conv, int]]:
    """Each convolution with the side of its input; pooling halves it between stages."""
    for index, stage in enumerate(stages(architecture)):
        yield from ((conv, size >> index) for conv in stage)
