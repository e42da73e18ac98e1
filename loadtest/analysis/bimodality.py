"""Whether a distribution of latency has two modes: no request may be near a median between them."""

import numpy as np
from numpy.typing import NDArray

from medserve.spec import Noun

LEAST = 200
"""Latencies below which nothing is detected."""
MINOR = 0.1
"""Least share of the smaller population; a smaller one is a tail, which the percentiles show."""
VALLEY = 0.5
"""Greatest density between the modes, over that of the lower mode, for two modes."""
APART = 1.1
"""Least ratio of two modes; closer ones are one for any use of the numbers."""
APART_NS = 1_000.0
"""Least difference of two modes: it is what the clock and a call cost."""
ENOUGH = 1_000_000
BINS = 512


class Modes(Noun, frozen=True, kw_only=True):
    """Two populations: their modes in nanoseconds, and the share of requests in the upper one."""

    lower: float
    upper: float
    share: float


def detect(latencies: NDArray[np.float64]) -> Modes | None:
    """The two populations of finite latencies (ns), or null when there is one, or too few requests to tell.

    A kernel density on a log scale; its bandwidth is Silverman's (1986, equation 3.31), and two modes count when the
    valley between them is deep and neither side is a mere tail.
    """
    # Beyond ENOUGH values a regular sample suffices: the density of a million looks like that of ten.
    sample = latencies[:: max(1, len(latencies) // ENOUGH)]
    values = np.log(sample[np.isfinite(sample) & (sample > 0)])
    if len(values) < LEAST:
        return None
    low, high = np.quantile(values, (0.001, 0.999))
    quartiles = np.quantile(values, (0.25, 0.75))
    width = 0.9 * min(values.std(), (quartiles[1] - quartiles[0]) / 1.34 or values.std()) * len(values) ** -0.2
    # Clocks and timers have steps, which are no modes: half a per cent at least.
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
    for lower, upper in ((a, b) for a in peaks for b in peaks if a < b):
        valley = lower + int(np.argmin(density[lower : upper + 1]))
        share = float((values > centres[valley]).mean())
        ratio = density[valley] / min(density[lower], density[upper])
        modes = Modes(lower=float(np.exp(centres[lower])), upper=float(np.exp(centres[upper])), share=share)
        apart = modes.upper > APART * modes.lower and modes.upper > modes.lower + APART_NS
        if ratio < depth and MINOR <= share <= 1 - MINOR and apart:
            depth, best = ratio, modes
    return best
