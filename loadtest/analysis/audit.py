"""Whether a server answers from a cache: each image of an audit is sent once fresh, and then the very same again."""

import numpy as np
import pyarrow as pa
from scipy.stats import binom

from loadtest.analysis import intervals
from loadtest.results import latency
from medserve.errors import BadInput
from medserve.spec import Noun

CACHED = 0.9
"""Second over first below which, interval included, a repeat is cheaper than memory and branch predictors make it."""


class Repeats(Noun, frozen=True, kw_only=True):
    """The median of second over first latency, with its 95 % interval; `pairs` are those answered twice."""

    pairs: int
    ratio: float
    low: float
    high: float
    cached: bool


def repeats(table: pa.Table) -> Repeats:
    """What the pairs of an audit's record say. Raises BadInput with fewer than an interval needs.

    The interval lies between order statistics of the paired log ratios, and so asks nothing of their distribution
    (Hahn & Meeker, Statistical Intervals, 1991, section 5.2).
    """
    took = latency.from_sent(table)
    pairs = took[: len(took) // 2 * 2].reshape(-1, 2)
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    count, least = len(pairs), intervals.least_samples(0.5)
    if count < least:
        raise BadInput(f"the audit of repeats has {count} answered pairs, needs {least}; measure the cell again")
    ratios = np.sort(np.log(np.maximum(pairs[:, 1], 1.0)) - np.log(np.maximum(pairs[:, 0], 1.0)))
    # The most values that may lie beyond either end.
    beyond = int(binom.ppf((1 - intervals.LEVEL) / 2, count, 0.5)) - 1
    low, ratio, high = np.exp([ratios[beyond], np.median(ratios), ratios[-1 - beyond]])
    return Repeats(pairs=count, ratio=float(ratio), low=float(low), high=float(high), cached=bool(high < CACHED))
