"""Accuracy against latency: the Pareto front, dominated deployments, and the best deployment for an objective."""

from collections.abc import Callable, Collection, Mapping, Sequence
from math import ceil, floor, inf, isfinite, log10

from loadtest.analysis.intervals import Interval
from medserve.spec import Noun

Slower = Callable[[str, str], bool]
"""Whether the second of two deployments is slower with 95 % confidence, by a paired comparison."""
STEPS = (1.0, 2.0, 5.0)
"""Limits in every decade."""


class Point(Noun, frozen=True, kw_only=True):
    """A deployment on the plane of latency (ms) and accuracy (share)."""

    name: str
    latency: Interval
    accuracy: Interval


class Candidate(Noun, frozen=True, kw_only=True):
    """A deployment under one way of measuring. `median` in ms, `accuracy` a share with its interval.

    `bounds` are the upper ends of the 95 % intervals of its percentiles in ms, by name: infinite where requests failed,
    absent where the sample is too small for the percentile. `floors` are their lower ends.
    """

    name: str
    median: float
    accuracy: Interval
    bounds: Mapping[str, float]
    floors: Mapping[str, float] = {}


class Choice(Noun, frozen=True, kw_only=True):
    """The best candidate whose `percentile` lies below `limit` ms with 95 % confidence; null when there is none.

    `alike` also keep the limit, may be as accurate, and are not slower with 95 % confidence. Of `maybe` the interval
    holds the limit.
    """

    limit: float
    percentile: str
    best: str | None
    alike: tuple[str, ...] = ()
    maybe: tuple[str, ...] = ()


def front(points: Collection[Point]) -> set[str]:
    """The Pareto front by the estimates alone: no other point is as fast and as accurate, and better in one of them."""
    return {
        point.name
        for point in points
        if not any(
            other.latency.known <= point.latency.known
            and other.accuracy.known >= point.accuracy.known
            and (other.latency.known, other.accuracy.known) != (point.latency.known, point.accuracy.known)
            for other in points
        )
    }


def dominated(points: Sequence[Point], slower: Slower) -> dict[str, str]:
    """The points that another one dominates, and by which: slower with 95 % confidence, and no more accurate.

    That other one is the fastest that dominates them.
    """
    found: dict[str, str] = {}
    ordered = sorted(points, key=lambda point: point.latency.known)
    for place, point in enumerate(ordered):
        for other in ordered[:place]:
            if other.accuracy.known >= point.accuracy.known and slower(other.name, point.name):
                found[point.name] = other.name
                break
    return found


def supported_percentile(candidates: Collection[Candidate], percentiles: Sequence[str]) -> str | None:
    """The first of the percentiles that every sample is large enough for, so that one rule holds for all; or null."""
    return next((name for name in percentiles if all(name in candidate.bounds for candidate in candidates)), None)


def limits(bounds: Collection[float]) -> list[float]:
    """Round limits (1, 2, 5, 10, ...) from the lowest above the smallest bound to the lowest above the largest."""
    known = [bound for bound in bounds if isfinite(bound) and bound > 0]
    if not known:
        return []
    powers = range(floor(log10(min(known))), ceil(log10(max(known))) + 1)
    ladder = [float(f"{step * 10.0**power:.6g}") for power in powers for step in STEPS]
    last = next((limit for limit in ladder if limit > max(known)), inf)
    return [limit for limit in ladder if min(known) < limit <= last]


def best(candidates: Collection[Candidate], percentile: str, limit: float, slower: Slower) -> Choice:
    """The fastest of the candidates below the limit whose accuracy interval overlaps with that of the most accurate.

    As accuracies are shares of the same test images, to compare intervals asks for more than a paired test would.
    """
    within = [candidate for candidate in candidates if candidate.bounds.get(percentile, inf) < limit]
    if not within:
        return Choice(limit=limit, percentile=percentile, best=None)
    floors, ceilings = zip(*(_ends(candidate.accuracy) for candidate in within), strict=True)
    accurate = [candidate for candidate, ceiling in zip(within, ceilings, strict=True) if ceiling >= max(floors)]
    first, *others = sorted(accurate, key=lambda candidate: candidate.median)
    alike = tuple(other.name for other in others if not slower(first.name, other.name))
    maybe = tuple(
        candidate.name
        for candidate in candidates
        if candidate.floors.get(percentile, inf) < limit <= candidate.bounds.get(percentile, inf)
    )
    return Choice(limit=limit, percentile=percentile, best=first.name, alike=alike, maybe=maybe)


def _ends(found: Interval) -> tuple[float, float]:
    """Both ends of an interval; the value twice when it has none."""
    return (found.known if found.low is None else found.low, found.known if found.high is None else found.high)
