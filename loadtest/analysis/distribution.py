"""The empirical distribution of one launch's latency, thinned for a chart."""

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
