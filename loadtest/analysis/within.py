"""Percentiles of one record with their intervals: what one launch says of itself, its requests correlated as they are.

It says nothing of another launch, whose memory lies elsewhere: between launches `intervals` has the say.
"""

import numpy as np
from numpy.typing import NDArray

from loadtest.analysis.exceedance import autocorrelation_time, clopper_pearson
from loadtest.analysis.intervals import Estimate, least_samples, percentile

MANY = 1 << 20
"""Requests from which the autocorrelation is known well enough; more only take memory."""


def estimate(latencies: NDArray[np.float64], ordered: NDArray[np.float64], p: float) -> Estimate:
    """The percentile `p` in milliseconds with its 95 % interval, from latencies (ns) in order of time, and sorted.

    The interval lies between order statistics, at the ends of the exact interval for a share of p (Hahn & Meeker,
    Statistical Intervals, 1991, section 5.2), of as many independent requests as the correlated ones are worth.
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
    low, high = (percentile(ordered, share) for share in clopper_pearson(p * effective, effective))
    return Estimate(value=value / 1e6, low=low / 1e6, high=high / 1e6 if np.isfinite(high) else None)
