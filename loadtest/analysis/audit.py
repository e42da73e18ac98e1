"""Whether a server answers from a cache: each request of an audit is sent once, and then repeated byte for byte."""

from math import ceil

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrik

from loadtest.analysis import intervals
from medserve.errors import BadInput
from medserve.spec import LIMITS, Limits, Noun


class CacheAudit(Noun, frozen=True, kw_only=True):
    """The median of second over first latency, with its 95 % interval; `pairs` are those answered twice."""

    pairs: int
    ratio: float
    low: float
    high: float
    cached: bool


def audit(latencies: NDArray[np.float64], limits: Limits = LIMITS) -> CacheAudit:
    """Compare the two service times (float64 ns, infinite where failed) of each pair, given pair after pair.

    The interval lies between order statistics of the paired log ratios, so it assumes nothing of their distribution
    (Hahn & Meeker, Statistical Intervals, 1991, section 5.2). Raises BadInput with too few pairs for an interval.
    """
    pairs = latencies[: len(latencies) // 2 * 2].reshape(-1, 2)
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    count, least = len(pairs), intervals.least_samples(0.5)
    if count < least:
        raise BadInput(f"the audit of repeats has {count} answered pairs, needs {least}; measure the cell again")
    ratios = np.sort(np.log(np.maximum(pairs[:, 1], 1.0)) - np.log(np.maximum(pairs[:, 0], 1.0)))
    # The most values that may lie beyond either end.
    beyond = ceil(bdtrik((1 - intervals.LEVEL) / 2, count, 0.5)) - 1
    low, ratio, high = np.exp([ratios[beyond], np.median(ratios), ratios[-1 - beyond]])
    return CacheAudit(
        pairs=count, ratio=float(ratio), low=float(low), high=float(high), cached=bool(high < limits.cached)
    )
