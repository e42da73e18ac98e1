"""Loads as shares of what a server completes at most: its measured utilisation, and what is asked beyond its capacity.

The capacity is what a server answers per second to users who never idle it. There it is busy all of the time, so what
its own stages leave of a request's share of that time is what a request costs it beside them: parsing, writing, the
event loop. Under any other load the utilisation is the answers per second times that and the stages' own time, which
the server measures then: a server that has become slower since is more utilised, whatever was asked.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from math import exp, log

from loadtest.analysis.intervals import Interval, log_t_interval
from loadtest.results.launch_summary import LaunchSummary
from medserve.numbers import number

UNFINISHED = 0.05, 50
"""Share and number of an open loop's requests above which those that wait at its end are a queue that grows."""


def utilisations(loaded: Mapping[int, LaunchSummary], capacity: Mapping[int, LaunchSummary]) -> list[float]:
    """The share of the time that the server is busy, of each launch that has its capacity and the server's stages."""
    found = []
    for index, launch in loaded.items():
        full = capacity.get(index)
        if full is None or full.busy_ns is None or launch.busy_ns is None or not _rate(full):
            continue
        beside = 1e9 / _rate(full) - full.busy_ns
        found.append(_rate(launch) * (launch.busy_ns + beside) / 1e9)
    return found


def overload(launches: Sequence[LaunchSummary], utilisation: float | None) -> str | None:
    """Why the latency of an open loop says nothing but how long it lasted; null where the server keeps up."""
    share, count = UNFINISHED
    growing = [launch for launch in launches if launch.unfinished > max(share * launch.count, count)]
    if 2 * len(growing) <= len(launches) and (utilisation is None or utilisation < 1):
        return None
    rate = sum(map(_rate, launches)) / len(launches)
    return f"beyond capacity: latency depends on duration; {number(rate)} requests/s are completed"


def rate_within(
    loads: Iterable[tuple[Mapping[int, float], Mapping[int, float]]], limit_ms: float
) -> tuple[Interval, str]:
    """The highest rate at which a percentile is within a limit, from its `loads`: rates and percentiles (ms) by launch.

    Of each launch the rate lies where the line through the logarithms of neighbouring loads crosses the limit; the
    interval is Student's t over launches. The words say where it lies beyond the loads that were measured.
    """
    by_launch: dict[int, list[tuple[float, float]]] = {}
    for rates, percentiles in loads:
        for index in rates.keys() & percentiles.keys():
            by_launch.setdefault(index, []).append((rates[index], percentiles[index]))
    found, below, above = [], [], []
    for points in by_launch.values():
        points.sort()
        if points[0][1] > limit_ms:
            below.append(points[0][0])
        elif (rate := _crossing(points, limit_ms)) is not None:
            found.append(rate)
        else:
            above.append(points[-1][0])
    if found and not below and not above:
        return log_t_interval(found), ""
    if above and not below:
        return Interval(low=min(*above, *found) if found else min(above)), "at least"
    if below and not above:
        return Interval(high=max(*below, *found) if found else max(below)), "below"
    return Interval(reason="its launches disagree"), ""


def _crossing(points: Sequence[tuple[float, float]], limit: float) -> float | None:
    """The rate at which the first segment rises above the limit; null if none does."""
    for (rate, value), (next_rate, next_value) in pairwise(points):
        if next_value > limit:
            if next_value == float("inf"):
                return rate
            along = log(limit / value) / log(next_value / value)
            return rate * exp(along * log(next_rate / rate))
    return None


def _rate(launch: LaunchSummary) -> float:
    return (launch.count - launch.failed) / launch.seconds if launch.seconds else 0.0
