"""Intervals from one launch alone: of a percentile, of the share above a limit, and of a cache audit.

Requests of a launch are correlated. An audit sends each request once, and then repeats it byte for byte. Nothing here
says anything of other launches, whose memory layout differs: `intervals` gives the intervals between launches.
"""

from math import ceil
from typing import Literal

import msgspec
import numpy as np
import scipy
from numpy.typing import NDArray

from loadtest.analysis.intervals import LEVEL, Interval, estimate, least_samples, percentile
from medserve.errors import BadInput
from medserve.spec import Noun
from medserve.tables import LIMITS, Limits

ObjectiveVerdict = Literal["holds", "fails", "undecided"]

ENOUGH = 1 << 20
"""Requests from which the autocorrelation is estimated at most: more change nothing and take memory."""


class Exceedance(Noun, frozen=True, kw_only=True):
    """The share of requests that took longer than a limit, or failed, with its interval (95 % if not said otherwise).

    `effective` is the effective sample size: the number of independent requests that carry as much information.
    `verdict` compares the interval with the share that the percentile allows.
    """

    requests: int
    effective: float
    share: float
    low: float
    high: float
    verdict: ObjectiveVerdict


class CacheAudit(Noun, frozen=True, kw_only=True):
    """The median of second over first latency, with its 95 % interval; `pairs` are those answered twice."""

    pairs: int
    ratio: float
    low: float
    high: float
    cached: bool


def percentile_interval(latencies: NDArray[np.float64], ordered: NDArray[np.float64], p: float) -> Interval:
    """The percentile `p` in milliseconds with its 95 % interval, from latencies (ns) in order of time, and sorted.

    The value is there as by `intervals.combine`, by the number of requests; the interval also needs as many effective
    ones. It lies between order statistics, by the binomial distribution of how many of n independent requests are
    below the percentile (Hahn & Meeker, Statistical Intervals, 1991, section 5.2); n is the effective sample size.
    Fractional ranks are interpolated (Hettmansperger & Sheather 1986), because rounded ones cover too much or too
    little.
    """
    found = estimate([ordered], p)
    if found.value is None:
        return found
    least, value = least_samples(p), percentile(ordered, p)
    effective = len(ordered) / autocorrelation_time(latencies[:ENOUGH] > value)
    if effective < least:
        worth = f"{len(ordered):,} correlated requests are worth {effective:,.0f} independent ones"
        return msgspec.structs.replace(found, reason=f"p{p * 100:g}: no interval, {worth} < {least:,}")
    ranks = 1 + scipy.special.bdtrik(((1 - LEVEL) / 2, (1 + LEVEL) / 2), effective, p)
    low, high = (_at_rank(ordered, float(rank) * (len(ordered) + 1) / (effective + 1)) for rank in ranks)
    return Interval(value=value / 1e6, low=low / 1e6, high=high / 1e6 if np.isfinite(high) else None)


def exceedance(latencies: NDArray[np.float64], limit: float, p: float, level: float = LEVEL) -> Exceedance:
    """Whether the percentile `p` (0 to 1) is under `limit`: latencies in order of time, infinite where failed.

    The objective holds when the interval of the share above the limit ends below 1 - p, and fails when it begins
    above. The interval uses the effective sample size: n divided by the integrated autocorrelation time, because
    neighbouring requests wait in the same queue, times the squared ratio of two quantiles of Student's t, because that
    time is estimated too (Korn & Graubard, Survey Methodology 24, 1998, for clustered samples).
    """
    count = len(latencies)
    if not count:
        return Exceedance(requests=0, effective=0.0, share=0.0, low=0.0, high=1.0, verdict="undecided")
    above = latencies > limit
    # Without a single exceedance their clusters are unknown; those above the record's own percentile stand in.
    own = latencies > percentile(np.sort(latencies), p)
    effective = count / max(autocorrelation_time(above), autocorrelation_time(own))
    known, estimated = scipy.special.stdtrit(np.maximum([count - 1, effective - 1], 1.0), (1 + level) / 2)
    effective *= float(known / estimated) ** 2
    share = float(above.mean())
    low, high = clopper_pearson(share * effective, effective, level)
    allowed = 1 - p
    verdict: ObjectiveVerdict = "holds" if high <= allowed else "fails" if low > allowed else "undecided"
    return Exceedance(requests=count, effective=effective, share=share, low=low, high=high, verdict=verdict)


def audit(latencies: NDArray[np.float64], limits: Limits = LIMITS) -> CacheAudit:
    """Compare the two service times (float64 ns, infinite where failed) of each pair, given pair after pair.

    The interval lies between order statistics of the paired log ratios, so it assumes nothing of their distribution
    (Hahn & Meeker, Statistical Intervals, 1991, section 5.2). Raises BadInput with too few pairs for an interval.
    """
    pairs = latencies[: len(latencies) // 2 * 2].reshape(-1, 2)
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    count, least = len(pairs), least_samples(0.5)
    if count < least:
        raise BadInput(f"the audit of repeats has {count} answered pairs, needs {least}; measure the cell again")
    ratios = np.sort(np.log(np.maximum(pairs[:, 1], 1.0)) - np.log(np.maximum(pairs[:, 0], 1.0)))
    # The most values that may lie beyond either end.
    beyond = ceil(scipy.special.bdtrik((1 - LEVEL) / 2, count, 0.5)) - 1
    low, ratio, high = np.exp([ratios[beyond], np.median(ratios), ratios[-1 - beyond]])
    return CacheAudit(
        pairs=count, ratio=float(ratio), low=float(low), high=float(high), cached=bool(high < limits.cached)
    )


def clopper_pearson(count: float, n: float, level: float = LEVEL) -> tuple[float, float]:
    """The exact interval of a share of which `count` in `n` were seen; neither need be an integer.

    Clopper & Pearson, Biometrika 26 (1934), as quantiles of the beta distribution.
    """
    tail = (1 - level) / 2
    low = float(scipy.special.betaincinv(count, n - count + 1, tail)) if count > 0 else 0.0
    high = float(scipy.special.betaincinv(count + 1, n - count, 1 - tail)) if count < n else 1.0
    return low, high


def autocorrelation_time(series: NDArray[np.bool_]) -> float:
    """The integrated autocorrelation time in requests: 1 + 2 * (sum of the autocorrelations), 1 if independent.

    The sum ends by Geyer's initial positive sequence (Statistical Science 7, 1992): sums of neighbouring pairs are
    positive in theory, and the first that is not is noise. Never below 1, so that alternation earns no credit.
    """
    count = len(series)
    centred = series.astype(np.float64) - series.mean()
    if not centred.any():
        return 1.0
    # Zeros up to a power of two above 2n keep the two ends of the series from correlating with each other.
    spectrum = np.fft.rfft(centred, 1 << (2 * count - 1).bit_length())
    covariance = np.fft.irfft(np.abs(spectrum) ** 2)[:count]
    pairs = covariance[: count // 2 * 2].reshape(-1, 2).sum(axis=1) / covariance[0]
    negative = np.flatnonzero(pairs <= 0)
    return max(1.0, 2.0 * float(pairs[: negative[0] if negative.size else None].sum()) - 1.0)


def _at_rank(ordered: NDArray[np.float64], rank: float) -> float:
    """The value at a rank, 1 to n, interpolated linearly between its neighbours where it is fractional."""
    whole = int(rank := min(max(rank, 1.0), float(len(ordered))))
    below, above = ordered[whole - 1], ordered[min(whole, len(ordered) - 1)]
    # The difference of two infinite values would be no number.
    return float(below) if below == above else float(below + (rank - whole) * (above - below))
