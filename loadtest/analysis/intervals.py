"""Percentiles and their 95 % intervals: functions of raw samples, with launches as the unit."""

from collections.abc import Sequence
from math import ceil, exp, inf, isfinite, log, sqrt
from statistics import fmean, stdev

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.special import stdtrit

from loadtest.samples import is_good
from medserve.spec import Noun

LEVEL = 0.95
COLUMNS = ("intended_ns", "sent_ns", "done_ns", "status", "wrong", "warmup", "batch")
"""What the functions here want of a record."""


class Estimate(Noun, frozen=True, kw_only=True):
    """A percentile in milliseconds with its interval; what cannot be given is null, and `reason` says why."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str | None = None


def measured(table: pa.Table) -> pa.Table:
    """The rows after the warm-up."""
    return table.filter(pc.invert(table["warmup"]))


def latencies(table: pa.Table) -> NDArray[np.float64]:
    """Nanoseconds from the intended time, or from the sending where there is none; failed or wrong is infinite."""
    origin = pc.coalesce(table["intended_ns"], table["sent_ns"])
    waited = pc.subtract(table["done_ns"], origin).combine_chunks()
    values = np.asarray(waited.to_numpy(zero_copy_only=False), np.float64)
    return np.where(is_good(table), values, inf)


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
    least = least_samples(p)
    name = f"p{p * 100:g}"
    if not launches:
        return Estimate(reason=f"{name}: no launch")
    if (fewest := min(map(len, launches))) < least:
        return Estimate(reason=f"{name} not estimable (n = {fewest} in a launch, needs {least})")
    values = [percentile(ordered, p) / 1e6 for ordered in launches]
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
