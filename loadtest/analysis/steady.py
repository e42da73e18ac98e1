"""Steady state: whether a series of latencies has one level, and which slower beginning of it is warm-up.

After Barrett et al., "Virtual machine warmup blows hot and cold", OOPSLA 2017: change points divide the series into
segments of one level; the last segments, as far as their levels are equivalent, are its steady state, if it has one.
Only a beginning that is slower than all that follows is warm-up, and no more than a share of the record: what stalls or
changes later belongs to the server, stays in every percentile, and is told.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import ceil, exp, isfinite, log

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from medserve.spec import Noun
from medserve.tables import LIMITS, Limits

BATCHES = 300
"""Batches whose medians form the series: their number limits the work, however long the record is."""
SMALLEST = 5
"""Fewest rows of a batch, so that a single slow one does not move its median."""
LEAST = 40
"""Fewest rows of a series that is judged."""
RESOLUTION_NS = 1_000.0
"""Levels that differ by less are equal: it is what the clock and a call cost."""
FLOOR = 0.01
"""Least relative noise: a series without any noise would otherwise consist of change points."""
FAILED = "no steady state: more than half of the requests failed throughout"
PENALTY = 5.0
"""Penalty of a change point in units of variance x log(batches). Two to three is usual for ideal noise; here the
variance is estimated, from few batches and with heavy tails."""


class Steady(Noun, frozen=True, kw_only=True):
    """Rows before `start` are warm-up. `reason`: why there is no steady state; with `steady`, why none was sought.

    `rises`: whether the largest change goes up; null with a steady state.
    """

    start: int
    steady: bool
    reason: str | None
    rises: bool | None = None


class _Segment(Struct, frozen=True):
    """Batches from `start` to before `end` of one level, a logarithm of nanoseconds.

    `share` is the larger of its shares of the rows and of the time.
    """

    start: int
    end: int
    level: float
    share: float


def find(latencies: NDArray[np.float64], planned: NDArray[np.int64] | None = None, limits: Limits = LIMITS) -> Steady:
    """The warm-up of a series of latencies (ns, infinite where failed), and whether it is steady afterwards.

    Rows are in the order of sending. With `planned`, their planned starts (ns), the reason has seconds.
    `limits` are those of the record.
    """
    count = len(latencies)
    if count < LEAST:
        return Steady(start=0, steady=True, reason=f"too few requests to tell a steady state ({count}, needs {LEAST})")
    size = max(SMALLEST, ceil(count / BATCHES))
    medians = np.array([np.median(latencies[first : first + size]) for first in range(0, count - size + 1, size)])
    known = medians[np.isfinite(medians)]
    if not len(known):
        return Steady(start=0, steady=False, reason=FAILED)
    elapsed = _elapsed(planned, size, len(medians))
    segments = _segments(np.log(np.clip(medians, 1.0, 10 * known.max())), elapsed)
    warm = _warm_up(segments, elapsed, len(medians), limits)
    for last in reversed(range(len(segments))):
        if sum(segment.share for segment in segments[last + 1 :]) > limits.stall:
            break
        start = _settled(segments[: last + 1], limits)
        lasts = min((len(medians) - start) / len(medians), 1 - elapsed[start])
        # A beginning at another level is as short a stall as any other may be.
        beginning = max((start - warm) / len(medians), elapsed[start] - elapsed[warm])
        if beginning <= limits.stall and lasts >= limits.lasts and isfinite(np.median(medians[start:])):
            return Steady(start=warm * size, steady=True, reason=None)
    # The reason names the largest change after the warm-up, not the last one.
    changes = [pair for pair in pairwise(segments) if pair[0].start >= warm]
    if not changes:
        return Steady(start=warm * size, steady=False, reason=FAILED)
    before, after = max(changes, key=lambda pair: abs(pair[1].level - pair[0].level))
    first, then = (float(np.median(medians[segment.start : segment.end])) for segment in (before, after))
    verb = "rose" if then > first else "fell"
    at = after.start * size
    when = f"at request {at:,} of {count:,}" if planned is None else f"{(planned[at] - planned[0]) / 1e9:.3g} s in"
    reason = f"no steady state: median {verb} from {_ms(first)} to {_ms(then)} {when}"
    return Steady(start=warm * size, steady=False, reason=reason, rises=then > first)


def of_launches(launches: Sequence[Steady]) -> bool | None:
    """Whether a cell has a steady state, from that of each launch; null when too few requests tell.

    It has none where no launch has one and all change in the same direction: that is how a server changes while it
    works. A machine changes the level of some launches, up and down; the interval over the launches shows it.
    """
    known = [launch for launch in launches if not (launch.steady and launch.reason)]
    if not known:
        return None
    return any(launch.steady for launch in known) or len({launch.rises for launch in known}) > 1


def _warm_up(segments: Sequence[_Segment], elapsed: NDArray[np.float64], batches: int, limits: Limits) -> int:
    """The batches of the longest beginning that is short enough and slower than all segments that follow."""
    found = 0
    for count, last in enumerate(segments[:-1], 1):
        if max(last.end / batches, elapsed[last.end]) > limits.warmup:
            break
        slowest = max(segment.level for segment in segments[count:])
        if all(_above(segment.level, slowest, limits) for segment in segments[:count]):
            found = last.end
    return found


def _above(level: float, other: float, limits: Limits) -> bool:
    """Whether a level, a logarithm of nanoseconds, lies above another one."""
    return level > other + log(limits.level) and exp(level) > exp(other) + RESOLUTION_NS


def _elapsed(planned: NDArray[np.int64] | None, size: int, batches: int) -> NDArray[np.float64]:
    """The share of the time before each batch, and 1 at the end; without times, the share of the rows."""
    rows = np.linspace(0.0, 1.0, batches + 1)
    if planned is None or planned[-1] == planned[0]:
        return rows
    begins = (planned[: batches * size : size] - planned[0]) / (planned[-1] - planned[0])
    return np.append(begins, 1.0)


def _settled(segments: Sequence[_Segment], limits: Limits) -> int:
    """The first batch of the stretch that ends with the last segment at its level, stalls within it allowed."""
    last = segments[-1]
    start, other = last.start, 0.0
    for segment in reversed(segments[:-1]):
        if not _above(segment.level, last.level, limits) and not _above(last.level, segment.level, limits):
            start, other = segment.start, 0.0
        elif (other := other + segment.share) > limits.stall:
            break
    return start


def _segments(series: NDArray[np.float64], elapsed: NDArray[np.float64]) -> list[_Segment]:
    """Optimal partitioning with an L2 cost (Jackson et al. 2005): the exact optimum, quadratic in so few batches."""
    count = len(series)
    # Except at a change, neighbours differ by noise alone; the median ignores the few changes.
    noise = max(FLOOR, 1.4826 * float(np.median(np.abs(np.diff(series)))) / 2**0.5)
    # The estimate of the noise is itself uncertain for few batches.
    penalty = PENALTY * (1 + 10 / count) * noise**2 * log(count)
    sums = np.concatenate([[0.0], np.cumsum(series - series.mean())])
    squares = np.concatenate([[0.0], np.cumsum((series - series.mean()) ** 2)])
    best, origin = np.zeros(count + 1), np.zeros(count + 1, np.int64)
    best[0] = -penalty
    for end in range(1, count + 1):
        cost = squares[end] - squares[:end] - (sums[end] - sums[:end]) ** 2 / (end - np.arange(end))
        total = best[:end] + cost + penalty
        origin[end] = int(np.argmin(total))
        best[end] = total[origin[end]]
    bounds = [count]
    while bounds[-1]:
        bounds.append(int(origin[bounds[-1]]))
    return [
        _Segment(
            start,
            end,
            float(series[start:end].mean()),
            max((end - start) / count, float(elapsed[end] - elapsed[start])),
        )
        for start, end in pairwise(reversed(bounds))
    ]


def _ms(nanoseconds: float) -> str:
    return f"{nanoseconds / 1e6:.3g} ms" if isfinite(nanoseconds) else "failures"
