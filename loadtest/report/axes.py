"""Axes with their ends and ticks. Intervals over three launches may span decades; they are cut at the axis's ends."""

from collections.abc import Sequence
from math import floor, log10
from typing import Any, Literal

import altair as alt
from msgspec import Struct

from loadtest.analysis.intervals import Interval

STEPS = (
    (1,),
    (1, 3),
    (1, 2, 5),
    (1, 1.5, 2, 3, 5, 7),
    (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8),
    (1, 1.1, 1.2, 1.3, 1.5, 1.7, 2, 2.5, 3, 4, 5, 6, 7, 8, 9),
)
"""Round numbers of a decade, from coarse to fine."""


class Axis(Struct, frozen=True, kw_only=True):
    """An axis that shows every value of `over`, and their intervals as far as they do not make the values small.

    `ends` and `ticks` replace the computed ones. A linear axis includes zero; one in `percent` stays within 0 and 100.
    """

    title: str
    over: Sequence[Interval] = ()
    scale: Literal["log", "linear", "percent"] = "log"
    ends: tuple[float, float] | None = None
    ticks: tuple[float, ...] = ()
    grid: bool = True
    form: str = ""

    @property
    def domain(self) -> tuple[float, float]:
        """The lowest and the highest number of the axis."""
        if self.ends is not None:
            return self.ends
        values = [found.known for found in self.over] + [0.0] * (self.scale == "linear")
        least, most = min(values), max(values)
        low = min([least, *(found.low for found in self.over if found.low is not None)])
        high = max([most, *(found.high for found in self.over if found.high is not None)])
        if self.scale == "log":
            return max(low, least / 2.5) / 1.15, min(high, most * 2.5) * 1.15
        if self.scale == "percent":
            room = max((high - low) * 0.06, 0.1)
            return max(0.0, low - room), min(100.0, high + room)
        room = most - least or 1.0
        return max(low, least - room / 2) - room * 0.04, min(high, most + room / 2) + room * 0.04

    @property
    def cuts(self) -> bool:
        """Whether an interval reaches beyond the axis."""
        least, most = self.domain
        ends = [end for found in self.over for end in (found.low, found.high) if end is not None]
        return any(not least <= end <= most for end in ends)

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of Altair's X and Y."""
        log = self.scale == "log"
        ticks = self.ticks or (log and _round_numbers(*self.domain))
        axis = alt.Axis(
            format=self.form or ("~g" if log else "~r"),
            grid=self.grid,
            **({"values": list(ticks)} if ticks else {"tickCount": 5}),
        )
        scale = alt.Scale(type="log" if log else "linear", domain=list(self.domain), nice=False, clamp=True)
        return {"title": self.title, "scale": scale, "axis": axis}


def _round_numbers(bottom: float, top: float) -> list[float]:
    """Ticks of a logarithmic axis, at least four if there are so many."""
    powers = range(floor(log10(bottom)), floor(log10(top)) + 1)
    found: list[float] = []
    for steps in STEPS:
        every = (float(f"{step * 10.0**power:.6g}") for power in powers for step in steps)
        found = [tick for tick in every if bottom <= tick <= top]
        if len(found) >= 4:
            break
    return found
