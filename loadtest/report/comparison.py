"""Which rows belong together in the report, the fastest of them, and what HTTP adds."""

from collections.abc import Collection, Iterable

from msgspec import Struct

from loadtest.analysis.intervals import Interval
from loadtest.results.pairs import Comparisons
from loadtest.results.row import Row
from medserve.spec import LoadProfile

Group = dict[str, Row]
"""The rows of one deployment by profile."""


class Fastest(Struct, frozen=True):
    """The lowest median of a group, and the rows that are not slower with 95 % confidence."""

    row: Row
    rivals: tuple[Row, ...]
    compared: int


def grouped(rows: Iterable[Row], *keys: str) -> dict[tuple[object, ...], list[Row]]:
    """Rows by the values of some keys, in order of first appearance."""
    found: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(getattr(row, key) for key in keys), []).append(row)
    return found


def by_deployment(rows: Iterable[Row]) -> list[Group]:
    """The rows of each deployment by profile."""
    found: dict[str, Group] = {}
    for row in rows:
        found.setdefault(row.deployment, {})[row.profile] = row
    return list(found.values())


def both_ways(profiles: Collection[LoadProfile]) -> tuple[str, str] | None:
    """The profiles of single images in process and in a closed loop; null unless the study has both."""
    inside, outside = single_image(profiles, "in-process"), single_image(profiles, "closed-loop")
    return (inside, outside) if inside and outside else None


def overhead(group: Group, inside: str, outside: str) -> Interval | None:
    """Milliseconds that HTTP adds to a deployment's median; null if one of the two was not measured."""
    if inside not in group or outside not in group or not group[inside].valid or not group[outside].valid:
        return None
    return _difference(group[inside], group[outside])


def _difference(inside: Row, outside: Row) -> Interval | None:
    first, second = inside.p50, outside.p50
    if first.value is None or second.value is None:
        return None
    value = second.value - first.value
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return Interval(value=value)
    return Interval(value=value, low=second.low - first.high, high=second.high - first.low)


def fastest(rows: Iterable[Row], comparisons: Comparisons) -> Fastest | None:
    """The lowest median of float32 rows; a lossy model is never ranked among them. Null without rows."""
    ranked = sorted((row for row in rows if row.usable and row.precision == "float32"), key=lambda row: row.median)
    if not ranked:
        return None
    first, *others = ranked
    rivals = tuple(row for row in others if comparisons.judge(first, row).verdict != "slower")
    return Fastest(first, rivals, len(ranked))


def side_by_side(profiles: Collection[LoadProfile]) -> list[LoadProfile]:
    """The profiles of the main tables and charts: without pauses, and with the fewest users of a ladder."""
    busy = [profile for profile in profiles if not profile.gap_seconds and profile.trap is None]
    least = {key: min(known.users for known in busy if _ladder(known) == key) for key in map(_ladder, busy)}
    return [profile for profile in busy if profile.users == least[_ladder(profile)]]


def _ladder(profile: LoadProfile) -> tuple[str, int]:
    return (profile.mode, profile.batch)


def single_image(profiles: Iterable[LoadProfile], mode: str) -> str | None:
    """The name of the first profile of a mode that sends single images with one user; or null."""
    return next((profile.name for profile in profiles if profile.mode == mode and is_single(profile)), None)


def is_single(profile: LoadProfile) -> bool:
    """Whether single images are sent by one user or schedule, without pauses and without a timing mistake."""
    return profile.batch == 1 and profile.users == 1 and not profile.gap_seconds and profile.trap is None
