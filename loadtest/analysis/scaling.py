"""Scaling: latency against image size (fixed cost, cost per pixel, exponent, crossover), and against users.

A response is fitted to each block of launches by itself; intervals are Student's t over the blocks.
"""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from math import exp, isfinite, log
from statistics import fmean

import numpy as np

from loadtest.analysis.intervals import Interval, log_t_interval, t_interval
from medserve.spec import Noun

Blocks = Mapping[int, Mapping[int, float]]
"""Milliseconds by block, and in it by the side of the square images in pixels."""

BENT = 0.15
"""Largest relative residual of a response that still counts as linear."""


class Response(Noun, frozen=True, kw_only=True):
    """latency = `fixed_ms` + `pixel_ns` x pixels; latency ~ pixels^`exponent` between the smallest and largest size.

    `residual` is the largest relative distance of a size's mean from the line; `linear` says whether it is small.
    """

    fixed_ms: Interval
    pixel_ns: Interval
    exponent: Interval
    sizes: tuple[int, ...]
    residual: float
    linear: bool


def response(blocks: Blocks) -> Response | None:
    """The response of one deployment; null unless a block has two sizes or more with finite positive latencies."""
    complete = _complete(blocks)
    if not complete:
        return None
    sizes = tuple(sorted(complete[0]))
    lines = [_line(block) for block in complete]
    residual = max(
        abs(fmean(fixed + slope * size**2 - block[size] for (fixed, slope), block in zip(lines, complete, strict=True)))
        / fmean(block[size] for block in complete)
        for size in sizes
    )
    return Response(
        fixed_ms=t_interval([fixed for fixed, _ in lines]),
        pixel_ns=t_interval([slope * 1e6 for _, slope in lines]),
        exponent=t_interval([_exponent(block) for block in complete]),
        sizes=sizes,
        residual=residual,
        linear=residual <= BENT,
    )


def crossover(first: Blocks, second: Blocks) -> Interval | None:
    """The side in pixels at which the second of two deployments overtakes the first; null when none lies between sizes.

    Interpolated piecewise linearly in log latency over log pixels, so that it passes through what was measured. Null
    also when the two do not cross, or cross more than once, in any one block.
    """
    a, b = _complete(first), _complete(second)
    if len(a) != len(b):
        return None
    sides = []
    for first_ms, second_ms in zip(a, b, strict=True):
        sizes = sorted(first_ms.keys() & second_ms.keys())
        found = [
            _crossing(low, high, log(second_ms[low] / first_ms[low]), log(second_ms[high] / first_ms[high]))
            for low, high in pairwise(sizes)
            if (second_ms[low] > first_ms[low]) != (second_ms[high] > first_ms[high])
        ]
        if len(found) != 1:
            return None
        sides.append(found[0])
    return log_t_interval(sides) if sides else None


def saturation_point(steps: Iterable[tuple[int, float | None, float | None]]) -> int | None:
    """The users at which throughput over latency is highest; of equals, the fewest. Null without any step.

    A step is a number of users, their throughput in any unit per second, and their median latency in any unit; steps
    without one of the two are left out. The quotient is the power of Kleinrock, "Power and deterministic rules of thumb
    for probabilistic problems in computer communications", ICC 1979. Beyond its maximum a request waits for other
    requests, not for the server.
    """
    power = {users: throughput / latency for users, throughput, latency in steps if throughput and latency}
    return max(sorted(power), key=power.__getitem__, default=None)


def _complete(blocks: Blocks) -> list[Mapping[int, float]]:
    """The blocks that have every size and only finite values; none when there is but one size."""
    sizes = {size for block in blocks.values() for size in block}
    if len(sizes) < 2:
        return []
    return [
        blocks[index]
        for index in sorted(blocks)
        if blocks[index].keys() == sizes and all(isfinite(value) and value > 0 for value in blocks[index].values())
    ]


def _line(block: Mapping[int, float]) -> tuple[float, float]:
    """Milliseconds at zero pixels and per pixel, by least squares of the relative errors, so that no size dominates."""
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
