"""Percentiles of one record with their intervals: what one launch says of itself, its requests correlated as they are.

It says nothing of another launch, whose memory lies elsewhere: between launches `intervals` has the say.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrik

from loadtest.analysis.exceedance import autocorrelation_time
from loadtest.analysis.intervals import LEVEL, Estimate, least_samples, percentile

MANY = 1 << 20
"""Requests from which the autocorrelation is known well enough; more only take memory."""


def estimate(latencies: NDArray[np.float64], ordered: NDArray[np.float64], p: float) -> Estimate:
    """The percentile `p` in milliseconds with its 95 % interval, from latencies (ns) in order of time, and sorted.

    Its ends are order statistics: of n independent requests as many are below the percentile as a binomial count of n
    and p (Hahn & Meeker, Statistical Intervals, 1991, section 5.2), and n is what the correlated ones are worth. Ranks
    that are not whole are interpolated (Hettmansperger & Sheather 1986); rounded ones hold too much or too little.
    """
    name, least = f"p{p * 100:g}", least_samples(p)
    if not len(ordered):
        return Estimate(reason=f"{name}: no request")
    value = percentile(ordered, p)
    effective = len(ordered) / autocorrelation_time(latencies[:MANY] > value)
    if effective < least:
        worth = "" if round(effective) >= len(ordered) else f", worth {effective:.0f} independent ones"
        return Estimate(reason=f"{name} not estimable (n = {len(ordered)}{worth}, needs {least})")
    if not np.isfinite(value):
        return Estimate(reason=f"{name} is infinite: more than {1 - p:.4g} of the requests failed")
    ranks = 1 + bdtrik(((1 - LEVEL) / 2, (1 + LEVEL) / 2), effective, p)
    low, high = (_at(ordered, float(rank) * (len(ordered) + 1) / (effective + 1)) for rank in ranks)
    return Estimate(value=value / 1e6, low=low / 1e6, high=high / 1e6 if np.isfinite(high) else None)


def _at(ordered: NDArray[np.float64], rank: float) -> float:
    """The value at a rank, 1 to n, in a straight line between its neighbours where it is not whole."""
    whole = int(rank := min(max(rank, 1.0), float(len(ordered))))
    below, above = ordered[whole - 1], ordered[min(whole, len(ordered) - 1)]
    # Infinite less infinite is no number.
    return float(below) if below == above else float(below + (rank - whole) * (above - below))
