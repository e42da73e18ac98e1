"""Two modes or one? A median between two populations of latency is the latency of nobody."""

import numpy as np
from numpy.typing import NDArray

from medserve.spec import Noun

LEAST = 200
"""Latencies below which nothing is told."""
MINOR = 0.1
"""Share of the smaller population. Below it the other is a tail, which the percentiles show."""
VALLEY = 0.5
"""Density between the modes, over that of the lower one, below which they are two."""
APART = 1.1
"""Ratio of the two modes below which they are one for any use of the numbers."""
MANY = 1_000_000
BINS = 512


class Modes(Noun, frozen=True, kw_only=True):
    """Two populations: their modes in nanoseconds, and the share of requests in the upper one."""

    lower: float
    upper: float
    share: float


def two(latencies: NDArray[np.float64]) -> Modes | None:
    """The two populations of finite latencies (ns), or null where there is one, or too few requests tell.

    A kernel density on a log scale; its bandwidth is Silverman's (1986, equation 3.31), and two modes count when the
    valley between them is deep and neither side is a mere tail.
    """
    # Of more than MANY every so-manieth: a density of a million looks like one of ten.
    some = latencies[:: max(1, len(latencies) // MANY)]
    values = np.log(some[np.isfinite(some) & (some > 0)])
    if len(values) < LEAST:
        return None
    low, high = np.quantile(values, (0.001, 0.999))
    quartiles = np.quantile(values, (0.25, 0.75))
    width = 0.9 * min(values.std(), (quartiles[1] - quartiles[0]) / 1.34 or values.std()) * len(values) ** -0.2
    # Clocks and timers have steps; below half a per cent nothing is a mode of its own.
    width = max(width, 0.005)
    edges = np.linspace(low - 3 * width, high + 3 * width, BINS + 1)
    counts, _ = np.histogram(values, edges)
    step = edges[1] - edges[0]
    reach = int(np.ceil(4 * width / step))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) * step / width) ** 2)
    density = np.convolve(counts, kernel / kernel.sum(), "same")
    centres = (edges[:-1] + edges[1:]) / 2
    peaks = np.flatnonzero((density[1:-1] >= density[:-2]) & (density[1:-1] > density[2:])) + 1
    best: Modes | None = None
    depth = VALLEY
    for one, other in ((a, b) for a in peaks for b in peaks if a < b):
        valley = one + int(np.argmin(density[one : other + 1]))
        share = float((values > centres[valley]).mean())
        ratio = density[valley] / min(density[one], density[other])
        if ratio < depth and MINOR <= share <= 1 - MINOR and centres[other] - centres[one] > np.log(APART):
            depth = ratio
            best = Modes(lower=float(np.exp(centres[one])), upper=float(np.exp(centres[other])), share=share)
    return best
