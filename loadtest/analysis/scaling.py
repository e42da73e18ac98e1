"""Latency over resolution: fixed cost and cost a pixel, scaling exponent, crossover, and the front against accuracy.

A response is fitted to each block of launches by itself; intervals are Student's t over the blocks.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import exp, isfinite, log, sqrt
from statistics import fmean, stdev

import numpy as np
from scipy.special import stdtrit

from loadtest.analysis.intervals import LEVEL
from medserve.spec import Noun

Blocks = Mapping[int, Mapping[int, float]]
"""Milliseconds by block, and in it by the side of the square images in pixels."""

BENT = 0.15
"""Largest relative residual of a response that still counts as linear."""


class Bounded(Noun, frozen=True, kw_only=True):
    """A value with its 95 % interval; without one where there is only one block."""

    value: float
    low: float | None = None
    high: float | None = None


class Response(Noun, frozen=True, kw_only=True):
    """latency = `fixed_ms` + `pixel_ns` x pixels; latency ~ pixels^`exponent` between the smallest and largest size.

    `residual` is the largest relative distance of a size's mean from the line; `linear` says whether it is small.
    """

    fixed_ms: Bounded
    pixel_ns: Bounded
    exponent: Bounded
    sizes: tuple[int, ...]
    residual: float
    linear: bool


class Point(Noun, frozen=True, kw_only=True):
    """A deployment on the plane of latency (ms) and accuracy (share). Points of one `model` have the same accuracy."""

    name: str
    model: str
    latency: Bounded
    accuracy: Bounded


def response(blocks: Blocks) -> Response | None:
    """The response of one deployment; null unless a block has two sizes or more with finite positive latencies."""
    whole = _whole(blocks)
    if not whole:
        return None
    sizes = tuple(sorted(whole[0]))
    lines = [_line(block) for block in whole]
    residual = max(
        abs(fmean(fixed + slope * size**2 - block[size] for (fixed, slope), block in zip(lines, whole, strict=True)))
        / fmean(block[size] for block in whole)
        for size in sizes
    )
    return Response(
        fixed_ms=bounded([fixed for fixed, _ in lines]),
        pixel_ns=bounded([slope * 1e6 for _, slope in lines]),
        exponent=bounded([_exponent(block) for block in whole]),
        sizes=sizes,
        residual=residual,
        linear=residual <= BENT,
    )


def crossover(first: Blocks, second: Blocks) -> Bounded | None:
    """The side in pixels at which the second of two deployments overtakes the first; null when none lies between sizes.

    Piecewise linear in log latency over log pixels, so that it passes through what was measured. A block in which the
    two do not cross, or cross more than once, means that there is no such size.
    """
    sides = []
    one, other = _whole(first), _whole(second)
    if len(one) != len(other):
        return None
    for a, b in zip(one, other, strict=True):
        sizes = sorted(a.keys() & b.keys())
        found = [
            _crossing(low, high, log(b[low] / a[low]), log(b[high] / a[high]))
            for low, high in pairwise(sizes)
            if (b[low] > a[low]) != (b[high] > a[high])
        ]
        if len(found) != 1:
            return None
        sides.append(found[0])
    return in_logs(sides) if sides else None


def wilson(share: float, count: int) -> Bounded:
    """The 95 % interval of a share of `count` images (Wilson 1927)."""
    z = 1.959963984540054
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return Bounded(value=share, low=max(0.0, centre - half), high=min(1.0, centre + half))


def difference(first: float, second: float, count: int) -> Bounded:
    """The first of two shares of `count` images less the second, with its interval (Newcombe 1998, method 10)."""
    one, other = wilson(first, count), wilson(second, count)
    value = first - second
    low = value - sqrt((first - (one.low or 0.0)) ** 2 + ((other.high or 1.0) - second) ** 2)
    high = value + sqrt(((one.high or 1.0) - first) ** 2 + (second - (other.low or 0.0)) ** 2)
    return Bounded(value=value, low=low, high=high)


def dominated(points: Sequence[Point]) -> dict[str, str]:
    """The points that are certainly worse than another: slower for certain, and no more accurate; and by which.

    That is the fastest that beats them, which itself is beaten by none.
    """
    found: dict[str, str] = {}
    ordered = sorted(points, key=lambda one: one.latency.value)
    for point in ordered:
        if beaten := next((other.name for other in ordered if _beats(other, point)), None):
            found[point.name] = beaten
    return found


def bounded(values: Sequence[float]) -> Bounded:
    """The mean of one value a block, with Student's interval."""
    centre, count = fmean(values), len(values)
    if count < 2:
        return Bounded(value=centre)
    half = float(stdtrit(count - 1, (1 + LEVEL) / 2)) * stdev(values, centre) / sqrt(count)
    return Bounded(value=centre, low=centre - half, high=centre + half)


def in_logs(values: Sequence[float]) -> Bounded:
    """The geometric mean of one positive value a block, with Student's interval on the logarithms."""
    found = bounded([log(value) for value in values])
    if found.low is None or found.high is None:
        return Bounded(value=exp(found.value))
    return Bounded(value=exp(found.value), low=exp(found.low), high=exp(found.high))


def _beats(one: Point, other: Point) -> bool:
    if one.latency.high is None or other.latency.low is None or one.latency.high >= other.latency.low:
        return False
    if one.model == other.model:
        return True
    return (one.accuracy.low or 0.0) >= (other.accuracy.high or 1.0)


def _whole(blocks: Blocks) -> list[Mapping[int, float]]:
    """The blocks that have every size, with nothing infinite in them; none when there is but one size."""
    sizes = {size for block in blocks.values() for size in block}
    if len(sizes) < 2:
        return []
    return [
        blocks[index]
        for index in sorted(blocks)
        if blocks[index].keys() == sizes and all(isfinite(one) and one > 0 for one in blocks[index].values())
    ]


def _line(block: Mapping[int, float]) -> tuple[float, float]:
    """Milliseconds at no pixels and a pixel, by least squares of the relative errors: a large size must not rule."""
    pixels = np.array([size**2 for size in block], np.float64)
    took = np.array(list(block.values()))
    design = np.column_stack([1 / took, pixels / took])
    (fixed, slope), *_ = np.linalg.lstsq(design, np.ones(len(took)), rcond=None)
    return float(fixed), float(slope)


def _exponent(block: Mapping[int, float]) -> float:
    small, large = min(block), max(block)
    return log(block[large] / block[small]) / log(large**2 / small**2)


def _crossing(low: int, high: int, below: float, above: float) -> float:
    return exp(log(low) + (log(high) - log(low)) * below / (below - above))
