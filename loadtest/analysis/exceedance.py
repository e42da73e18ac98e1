"""Does a percentile stay under a limit? A share of requests with its 95 % interval, correlated as they are."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from loadtest.analysis.intervals import LEVEL, percentile
from medserve.spec import Noun

Verdict = Literal["holds", "fails", "undecided"]


class Exceedance(Noun, frozen=True, kw_only=True):
    """The share of requests that took longer than a limit, or failed, with its 95 % interval.

    `effective` is the number of independent requests that would say as much; `verdict` compares the interval with the
    share that the percentile allows.
    """

    requests: int
    effective: float
    share: float
    low: float
    high: float
    verdict: Verdict


def exceedance(latencies: NDArray[np.float64], limit: float, p: float) -> Exceedance:
    """Whether the percentile `p` (0 to 1) is under `limit`: latencies in order of time, infinite where failed.

    The percentile holds when the interval of the share above the limit ends below 1 - p, and fails when it begins
    above. Neighbouring requests wait in the same queue; n is therefore divided by the integrated autocorrelation time
    before the interval is taken, as Korn & Graubard, Survey Methodology 24 (1998), do for clustered samples.
    """
    count = len(latencies)
    if not count:
        return Exceedance(requests=0, effective=0.0, share=0.0, low=0.0, high=1.0, verdict="undecided")
    above = latencies > limit
    # A run without a single exceedance knows nothing of their clusters; those above its own percentile tell.
    own = latencies > percentile(np.sort(latencies), p)
    effective = count / max(autocorrelation_time(above), autocorrelation_time(own))
    share = float(above.mean())
    low, high = clopper_pearson(share * effective, effective)
    allowed = 1 - p
    verdict: Verdict = "holds" if high <= allowed else "fails" if low > allowed else "undecided"
    return Exceedance(requests=count, effective=effective, share=share, low=low, high=high, verdict=verdict)


def clopper_pearson(count: float, n: float) -> tuple[float, float]:
    """The exact 95 % interval of a share of which `count` in `n` were seen; neither need be whole.

    Clopper & Pearson, Biometrika 26 (1934), as quantiles of the beta distribution.
    """
    tail = (1 - LEVEL) / 2
    low = float(betaincinv(count, n - count + 1, tail)) if count > 0 else 0.0
    high = float(betaincinv(count + 1, n - count, 1 - tail)) if count < n else 1.0
    return low, high


def autocorrelation_time(series: NDArray[np.bool_]) -> float:
    """Over how many requests one of them is felt: 1 for independent ones, 1 + 2 * (sum of the autocorrelations).

    The sum ends by Geyer's initial positive sequence (Statistical Science 7, 1992): sums of neighbouring pairs are
    positive in theory, and the first that is not is noise. Never below 1, so that alternation is not credited.
    """
    count = len(series)
    centred = series.astype(np.float64) - series.mean()
    if not centred.any():
        return 1.0
    # Zeros up to a power of two above 2n keep the ends of the series from meeting.
    spectrum = np.fft.rfft(centred, 1 << (2 * count - 1).bit_length())
    covariance = np.fft.irfft(np.abs(spectrum) ** 2)[:count]
    pairs = covariance[: count // 2 * 2].reshape(-1, 2).sum(axis=1) / covariance[0]
    negative = np.flatnonzero(pairs <= 0)
    return max(1.0, 2.0 * float(pairs[: negative[0] if negative.size else None].sum()) - 1.0)
