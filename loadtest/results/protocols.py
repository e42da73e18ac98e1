"""Under which protocol a latency was taken, and what the mistake of an unsound one does to a ranking."""

from collections.abc import Iterable
from typing import Literal

from loadtest.analysis.compare import Ratio
from loadtest.results.flags import Row

Protocol = tuple[str, int]
"""A profile and its threads."""
Turn = Literal["the same", "turns it around", "hides it", "makes one up"]


def of(row: Row) -> Protocol:
    """The protocol of a row."""
    return row["profile"], row["threads"]


def sound(rows: Iterable[Row]) -> dict[Protocol, Protocol | None]:
    """Each protocol with the sound one that it is held against; null for one that is sound itself.

    A closed loop is a trap where there is an open one: what waits while it waits is not seen.
    """
    rows = list(rows)
    plain: dict[str, Protocol] = {}
    for row in rows:
        if row["trap"] is None and row["batch"] == 1:
            plain.setdefault(row["mode"], of(row))
    found: dict[Protocol, Protocol | None] = {}
    for row in rows:
        if row["trap"] is not None:
            found[of(row)] = plain.get(row["mode"])
        elif row["mode"] == "closed-loop" and row["batch"] == 1:
            found[of(row)] = plain.get("open-loop")
        else:
            found[of(row)] = None
    return found


def turn(before: Ratio, after: Ratio) -> Turn:
    """What happens to the order of two, which the 95 % intervals of their ratio tell, from one protocol to another."""
    one, other = _order(before), _order(after)
    if one == other:
        return "the same"
    return "turns it around" if one and other else "hides it" if one else "makes one up"


def _order(ratio: Ratio) -> int:
    if ratio.low is None or ratio.high is None:
        return 0
    return 1 if ratio.low > 1 else -1 if ratio.high < 1 else 0
