"""Every family of networks at small widths, with all that it can do: fast enough to train, export and compare."""

from medserve.models import Architecture

CLASSES = 8
# What tests of these do not read: counts are held by the rows of the table.
UNCOUNTED = {"backbone_parameters": 0, "multiply_adds": 0, "mean": (0.5, 0.4, 0.6), "std": (0.25, 0.2, 0.3)}


def resnet(name: str, expansion: int, stride_first: bool = False) -> Architecture:
    return Architecture(
        name=name,
        family="resnet",
        first_kernel=7,
        stem=8,
        widths=(8, 12, 16, 20),
        depths=(2, 1, 1, 1),
        strides=(1, 2, 2, 2),
        expansions=(expansion,) * 4,
        stride_first=stride_first,
        features=20 * expansion,
        **UNCOUNTED,
    )


def efficientnet(name: str, drop: float = 0.0) -> Architecture:
    return Architecture(
        name=name,
        family="efficientnet_v2",
        stem=8,
        widths=(8, 12, 16, 16),
        depths=(1, 2, 2, 1),
        strides=(1, 2, 2, 1),
        expansions=(1, 4, 4, 6),
        fused=2,
        features=32,
        drop_out=drop,
        stochastic_depth=drop,
        **UNCOUNTED,
    )


SMALL = {
    row.name: row
    for row in (
        resnet("basic", 1),
        resnet("bottleneck", 2),
        resnet("bottleneck_v1", 2, stride_first=True),
        efficientnet("efficientnet"),
    )
}
DROPPING = efficientnet("dropping", drop=0.5)
