"""What to choose: the front of accuracy against latency, and the best deployment for an objective."""

from collections.abc import Collection, Mapping, Sequence
from math import ceil, floor, inf, isfinite, log10

from loadtest.analysis.scaling import Bounded, Point
from medserve.spec import Noun

STEPS = (1.0, 2.0, 5.0)
"""Limits in every decade."""


class Candidate(Noun, frozen=True, kw_only=True):
    """A deployment under one way of measuring. `median` in ms, `accuracy` a share with its interval.

    `bounds` are the upper ends of the 95 % intervals of its percentiles in ms, by name: infinite where requests failed,
    absent where the sample does not carry the percentile.
    """

    name: str
    median: float
    accuracy: Bounded
    bounds: Mapping[str, float]


class Choice(Noun, frozen=True, kw_only=True):
    """The best candidate whose `percentile` lies below `limit` ms for certain; null where none does.

    `alike` are those that hold the limit too and may be as accurate, but are slower.
    """

    limit: float
    percentile: str
    best: str | None
    alike: tuple[str, ...] = ()


def front(points: Collection[Point]) -> set[str]:
    """The points that no other surpasses, by the estimates alone: as fast and as accurate, and better in one."""
    return {
        point.name
        for point in points
        if not any(
            other.latency.value <= point.latency.value
            and other.accuracy.value >= point.accuracy.value
            and (other.latency.value, other.accuracy.value) != (point.latency.value, point.accuracy.value)
            for other in points
        )
    }


def carried(candidates: Collection[Candidate], percentiles: Sequence[str]) -> str | None:
    """The first of the percentiles that every sample carries, so that one rule holds for all; null where none is."""
    return next((name for name in percentiles if all(name in one.bounds for one in candidates)), None)


def limits(bounds: Collection[float]) -> list[float]:
    """Round limits (1, 2, 5, 10, ...) that the bounds span: from the first that one holds to the one all hold."""
    known = [bound for bound in bounds if isfinite(bound) and bound > 0]
    if not known:
        return []
    powers = range(floor(log10(min(known))), ceil(log10(max(known))) + 1)
    ladder = [float(f"{step * 10.0**power:.6g}") for power in powers for step in STEPS]
    last = next((limit for limit in ladder if limit > max(known)), inf)
    return [limit for limit in ladder if min(known) < limit <= last]


def best(candidates: Collection[Candidate], percentile: str, limit: float) -> Choice:
    """The most accurate candidate below the limit; of those that are not less accurate for certain, the fastest.

    Accuracies are told apart when their intervals are: they are shares of the same test images, so that this asks for
    more than a paired test would.
    """
    holding = [one for one in candidates if one.bounds.get(percentile, inf) < limit]
    if not holding:
        return Choice(limit=limit, percentile=percentile, best=None)
    floors, ceilings = zip(*(_ends(one.accuracy) for one in holding), strict=True)
    alike = [one for one, ceiling in zip(holding, ceilings, strict=True) if ceiling >= max(floors)]
    first, *others = sorted(alike, key=lambda one: one.median)
    return Choice(limit=limit, percentile=percentile, best=first.name, alike=tuple(one.name for one in others))


def _ends(found: Bounded) -> tuple[float, float]:
    """An interval, of no length where there is none."""
    return (found.value if found.low is None else found.low, found.value if found.high is None else found.high)
