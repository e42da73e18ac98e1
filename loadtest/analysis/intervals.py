"""Percentiles and their 95 % intervals: functions of raw samples, with launches as the unit."""

from collections.abc import Iterable, Sequence
from math import ceil, exp, isfinite, log, sqrt
from statistics import fmean, stdev

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct
from numpy.typing import NDArray
from scipy.special import stdtrit

from medserve.spec import Noun

LEVEL = 0.95
COLUMNS = ("intended_ns", "sent_ns", "done_ns", "status", "wrong", "warmup", "batch")
"""What the functions here want of a record."""


class Quantiles(Struct, frozen=True):
    """Percentiles (ns) of one launch by their share, and of how many requests."""

    count: int
    values: dict[float, float]


class Estimate(Noun, frozen=True, kw_only=True):
    """A percentile in milliseconds with its interval; what cannot be given is null, and `reason` says why."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str | None = None


def measured(table: pa.Table) -> pa.Table:
    """The rows after the warm-up; without a copy where it is what the record begins with."""
    warm = table["warmup"].to_numpy()
    count = int(warm.sum())
    return table.slice(count) if warm[:count].all() else table.filter(pc.invert(table["warmup"]))


def percentile(ordered: NDArray[np.float64], p: float) -> float:
    """The smallest value that at least a share `p` of the ascending values does not exceed (inverted empirical CDF)."""
    # The tolerance keeps a product like 0.99 * 100 = 99.00000000000001 from taking the next value.
    return float(ordered[max(0, ceil(p * len(ordered) - 1e-9) - 1)])


def least_samples(p: float) -> int:
    """Samples without which the percentile `p` has no two-sided 95 % interval between order statistics.

    The largest of n samples lies below it with probability p^n, which must be at most 2.5 %, as must (1-p)^n at the
    other end. See Hahn & Meeker, Statistical Intervals (1991), section 5.2.
    """
    return ceil(log((1 - LEVEL) / 2) / log(max(p, 1 - p)))


def estimate(launches: Sequence[NDArray[np.float64]], p: float) -> Estimate:
    """The percentile `p` of one cell in milliseconds, from the ascending latencies (ns) of each of its launches.

    Value: the geometric mean of the launches' percentiles. Interval: Student's t over their logarithms, for samples of
    one launch share its memory layout and are no independent draws.
    """
    return combine([quantiles(ordered, (p,)) for ordered in launches], p)


def quantiles(ordered: NDArray[np.float64], shares: Iterable[float]) -> Quantiles:
    """The percentiles of ascending latencies; none of no latencies."""
    return Quantiles(len(ordered), {p: percentile(ordered, p) for p in shares} if len(ordered) else {})


def combine(launches: Sequence[Quantiles], p: float) -> Estimate:
    """As `estimate`, from what is left of each launch."""
    least = least_samples(p)
    name = f"p{p * 100:g}"
    if not launches:
        return Estimate(reason=f"{name}: no launch")
    if (fewest := min(launch.count for launch in launches)) < least:
        return Estimate(reason=f"{name} not estimable (n = {fewest} in a launch, needs {least})")
    values = [launch.values[p] / 1e6 for launch in launches]
    if not all(map(isfinite, values)):
        return Estimate(reason=f"{name} is infinite: more than {1 - p:.4g} of the requests failed")
    logs = [log(max(value, 1e-6)) for value in values]
    centre = fmean(logs)
    count = len(logs)
    if count < 2:
        return Estimate(value=values[0], reason="one launch: no interval")
    half = float(stdtrit(count - 1, (1 + LEVEL) / 2)) * stdev(logs, centre) / sqrt(count)
    return Estimate(value=exp(centre), low=exp(centre - half), high=exp(centre + half))


def seconds(table: pa.Table, at_least: float = 0.0) -> float:
    """Seconds from the first intended time (or sending) of these rows to the last answer, and no fewer than asked."""
    if not len(table):
        return at_least
    first: int = pc.min(pc.coalesce(table["intended_ns"], table["sent_ns"], table["done_ns"])).as_py()
    last: int = pc.max(table["done_ns"]).as_py()
    return max(at_least, (last - first) / 1e9)
