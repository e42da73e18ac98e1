"""Percentiles of launches, and 95 % intervals: Student's t over launches, Wilson's for shares of images."""

from collections.abc import Callable, Iterable, Sequence
from math import ceil, exp, inf, isfinite, log, sqrt
from statistics import fmean, stdev
from typing import Self

import msgspec
import numpy as np
import scipy  # which imports its parts when they are used; a launch uses none
from msgspec import Struct
from numpy.typing import NDArray

from medserve.scores import paired_change
from medserve.spec import Noun

LEVEL = 0.95
Z = 1.959963984540054
"""The quantile of the normal distribution for LEVEL, two-sided."""


class Quantiles(Struct, frozen=True):
    """Percentiles (ns) of one launch by their share, and the number of its requests."""

    count: int
    values: dict[float, float]


class Interval(Noun, frozen=True, kw_only=True):
    """A value with its 95 % interval; `reason` says why a part of it is null."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str | None = None

    @property
    def known(self) -> float:
        """The value of an interval that has one."""
        assert self.value is not None
        return self.value

    def mapped(self, function: Callable[[float], float]) -> Self:
        """The interval of a function of the value; a falling function swaps the ends."""
        value, one, other = (None if end is None else function(end) for end in (self.value, self.low, self.high))
        low, high = (one, other) if one is None or other is None else sorted((one, other))
        return msgspec.structs.replace(self, value=value, low=low, high=high)


def percentile(ordered: NDArray[np.float64], p: float) -> float:
    """The smallest value that at least a share `p` of the ascending values does not exceed (inverted empirical CDF)."""
    # The tolerance keeps a product like 0.99 * 100 = 99.00000000000001 from taking the next value.
    return float(ordered[max(0, ceil(p * len(ordered) - 1e-9) - 1)])


def least_samples(p: float) -> int:
    """The fewest samples with which the percentile `p` has a two-sided 95 % interval between order statistics.

    The largest of n samples lies below it with probability p^n, which must be at most 2.5 %, as must (1-p)^n at the
    other end. See Hahn & Meeker, Statistical Intervals (1991), section 5.2.
    """
    return ceil(log((1 - LEVEL) / 2) / log(max(p, 1 - p)))


def estimate(launches: Sequence[NDArray[np.float64]], p: float) -> Interval:
    """The percentile `p` of one cell in milliseconds, from the ascending latencies (ns) of each of its launches.

    Value: the geometric mean of the launches' percentiles. Interval: Student's t over their logarithms; launches are
    the unit because requests of one launch share its memory layout and are not independent.
    """
    return combine([quantiles(ordered, (p,)) for ordered in launches], p)


def quantiles(ordered: NDArray[np.float64], shares: Iterable[float]) -> Quantiles:
    """The percentiles of ascending latencies (ns); empty without latencies."""
    return Quantiles(len(ordered), {p: percentile(ordered, p) for p in shares} if len(ordered) else {})


def combine(launches: Sequence[Quantiles], p: float) -> Interval:
    """As `estimate`, from the quantiles of each launch."""
    least = least_samples(p)
    name = f"p{p * 100:g}"
    if not launches:
        return Interval(reason=f"{name}: no launch")
    if (fewest := min(launch.count for launch in launches)) < least:
        return Interval(reason=f"{name}: n {fewest:,} < {least:,} in a launch")
    values = [launch.values[p] / 1e6 for launch in launches]
    if not all(map(isfinite, values)):
        return Interval(reason=f"{name} is infinite: more than {1 - p:.4g} of the requests failed")
    if len(values) < 2:
        return Interval(value=values[0], reason="one launch: no interval")
    return log_t_interval([max(value, 1e-6) for value in values])


def t_interval(values: Sequence[float]) -> Interval:
    """The mean of one value per block, with Student's t interval."""
    centre, count = fmean(values), len(values)
    if count < 2:
        return Interval(value=centre)
    half = half_width(stdev(values, centre), count - 1) / sqrt(count)
    return Interval(value=centre, low=centre - half, high=centre + half)


def half_width(error: float, freedom: float, level: float = LEVEL) -> float:
    """Half the width of Student's t interval, from the standard error and its degrees of freedom."""
    return float(scipy.special.stdtrit(freedom, (1 + level) / 2)) * error


def log_t_interval(values: Sequence[float]) -> Interval:
    """The geometric mean of one positive value per block, with Student's t interval on the logarithms."""
    return t_interval([log(value) for value in values]).mapped(exp)


def wilson(share: float, count: int) -> Interval:
    """The 95 % interval of a share of `count` images (Wilson 1927)."""
    centre = (share + Z * Z / (2 * count)) / (1 + Z * Z / count)
    half = Z / (1 + Z * Z / count) * sqrt(share * (1 - share) / count + Z * Z / (4 * count * count))
    return Interval(value=share, low=max(0.0, centre - half), high=min(1.0, centre + half))


def paired_difference(
    first: Sequence[NDArray[np.float64]], second: Sequence[NDArray[np.float64]], level: float = LEVEL
) -> Interval:
    """The mean share of right decisions of one side's networks less the other's, on the same images, at a confidence.

    Each side has one array (seeds, images) per configuration, and is the mean over them. Images and, where there are
    several, seeds are the sources of variance. That of the images is the adjusted one for matched pairs (Agresti & Min
    2005), as in `medserve.scores.paired_change`; that of the seeds is Student's, pooled by Welch and Satterthwaite.
    """
    per_image = [np.mean([one.mean(0) for one in side], axis=0) for side in (first, second)]
    change, error = paired_change(*per_image)
    parts = [
        (float(one.mean(1).var(ddof=1)) / len(one) / len(side) ** 2, len(one) - 1)
        for side in (first, second)
        for one in side
        if len(one) > 1
    ]
    variance = error**2 + sum(part for part, _ in parts)
    wrong = sum(part**2 / freedom for part, freedom in parts)
    half = half_width(sqrt(variance), variance**2 / wrong if wrong else inf, level)
    return Interval(value=float(per_image[0].mean() - per_image[1].mean()), low=change - half, high=change + half)


def difference_of_shares(first: float, second: float, count: int) -> Interval:
    """The first of two shares of `count` images less the second, with its interval (Newcombe 1998, method 10).

    For shares of which no answers are kept; of the same images `paired_difference` is narrower.
    """
    a, b = wilson(first, count), wilson(second, count)
    value = first - second
    low = value - sqrt((first - (a.low or 0.0)) ** 2 + ((b.high or 1.0) - second) ** 2)
    high = value + sqrt(((a.high or 1.0) - first) ** 2 + (second - (b.low or 0.0)) ** 2)
    return Interval(value=value, low=low, high=high)
