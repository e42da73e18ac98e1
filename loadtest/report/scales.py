"""Ends and ticks of axes. Intervals over three launches may span decades; they are cut before they dwarf the values."""

from collections.abc import Iterable, Sequence
from math import floor, log10

Spread = tuple[float, float | None, float | None]
"""A value with the ends of its interval."""
Domain = tuple[float, float]
CUT = " Intervals that leave the frame are cut at its edge."
"""The end of a caption where `cut` is true."""


def logarithmic(spreads: Sequence[Spread]) -> Domain:
    """Ends of a logarithmic axis: every value, and intervals as far as a factor of 2.5 beyond."""
    least, most = min(value for value, _, _ in spreads), max(value for value, _, _ in spreads)
    bottom = max(min([least, *_known(low for _, low, _ in spreads)]), least / 2.5)
    top = min(max([most, *_known(high for _, _, high in spreads)]), most * 2.5)
    return bottom / 1.15, top * 1.15


def linear(spreads: Sequence[Spread]) -> Domain:
    """Ends of a linear axis: zero, every value, and intervals as far as half the range beyond."""
    values = [value for value, _, _ in spreads]
    least, most = min(0.0, *values), max(0.0, *values)
    room = most - least or 1.0
    low = min([least, *_known(low for _, low, _ in spreads)])
    high = max([most, *_known(high for _, _, high in spreads)])
    return max(low, least - room / 2) - room * 0.04, min(high, most + room / 2) + room * 0.04


def percent(spreads: Sequence[Spread]) -> Domain:
    """Ends of an axis in per cent around shares with their intervals and some room, within 0 and 100."""
    least = min(_known(end for value, low, _ in spreads for end in (value, low))) * 100
    most = max(_known(end for value, _, high in spreads for end in (value, high))) * 100
    room = max((most - least) * 0.06, 0.1)
    return max(0.0, least - room), min(100.0, most + room)


def ticks(domain: Domain) -> list[float]:
    """Round numbers within a logarithmic axis, at least four if there are so many."""
    bottom, top = domain
    powers = range(floor(log10(bottom)), floor(log10(top)) + 1)
    found: list[float] = []
    for steps in (
        (1,),
        (1, 3),
        (1, 2, 5),
        (1, 1.5, 2, 3, 5, 7),
        (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8),
        (1, 1.1, 1.2, 1.3, 1.5, 1.7, 2, 2.5, 3, 4, 5, 6, 7, 8, 9),
    ):
        every = (float(f"{step * 10.0**power:.6g}") for power in powers for step in steps)
        found = [tick for tick in every if bottom <= tick <= top]
        if len(found) >= 4:
            break
    return found


def within(value: float, domain: Domain) -> float:
    """The value, limited to the ends of the axis."""
    return min(max(value, domain[0]), domain[1])


def cut(spreads: Iterable[Spread], domain: Domain) -> bool:
    """Whether an interval reaches beyond the axis."""
    return any(within(end, domain) != end for _, low, high in spreads for end in (low, high) if end is not None)


def _known(ends: Iterable[float | None]) -> list[float]:
    return [end for end in ends if end is not None]
