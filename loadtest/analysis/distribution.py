"""Empirical distributions: the latency of one launch, thinned for a chart, and the dispersion of arrivals."""

from math import nan

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

BODY = 46
"""Points down to the slowest tenth, evenly over the requests."""
DECADE = 16
"""Points in each decade of the tail beyond it."""


class Curve(Struct, frozen=True):
    """`shares` of the requests took at least so many `milliseconds`; both tuples are of one length."""

    milliseconds: tuple[float, ...]
    shares: tuple[float, ...]


def curve(ordered: NDArray[np.float64]) -> Curve:
    """The complementary distribution of ascending latencies (ns): fewer than 200 points for ten million requests.

    Each point belongs to the empirical distribution, nothing is smoothed. Failures, which are infinite, are no points:
    the curve ends above their share.
    """
    count = len(ordered)
    if not count:
        return Curve((), ())
    body = np.linspace(1.0, 0.1, BODY)
    decades = max(0.0, np.log10(count) - 1)
    tail = np.geomspace(0.1, min(0.1, 1 / count), 1 + round(DECADE * decades))
    places = np.unique(count - np.rint(np.concatenate([body, tail]) * count).clip(1).astype(np.int64))
    found = ordered[places] / 1e6
    known = np.isfinite(found)
    return Curve(tuple(found[known].tolist()), tuple((1 - places[known] / count).tolist()))


def index_of_dispersion(stamps: NDArray[np.int64], window_ns: int) -> float:
    """Variance over mean of the counts in whole windows: 0 for even arrivals, 1 for a Poisson process, above in bursts.

    `stamps` are int64 nanoseconds in any order; NaN when they fill fewer than two windows. Source: Cox & Lewis, The
    Statistical Analysis of Series of Events (1966), the index of dispersion for counts.
    """
    counts = np.bincount((stamps - stamps.min()) // window_ns)[:-1] if len(stamps) else np.zeros(0)
    return float(counts.var(ddof=1) / counts.mean()) if len(counts) > 1 else nan
