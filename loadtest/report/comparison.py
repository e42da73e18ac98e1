"""Comparisons for the report: pairs of native and ONNX, the fastest of a group, and which rows belong together."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from msgspec import Struct

from loadtest.analysis import compare
from loadtest.analysis.compare import Ratio, Verdict
from loadtest.analysis.intervals import Interval
from loadtest.results.row import Row
from medserve.spec import LoadProfile

Group = dict[str, Row]
"""The rows of one deployment by profile."""
Medians = Mapping[str, Mapping[int, float]]
"""Milliseconds of each launch by its block, by cell."""
SAME = (
    "dataset",
    "size",
    "architecture",
    "framework",
    "device",
    "threads",
    "batch_images",
    "variant",
    "seed",
    "profile",
)
"""A native row and an ONNX row are compared when they agree in these."""


class Pair(Struct, frozen=True):
    """Native beside ONNX under one profile; `ratio` is ONNX / native of the medians, null where one is missing."""

    native: Row
    onnx: Row
    ratio: Interval | None
    verdict: Verdict


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


def usable(row: Row) -> bool:
    """Whether a row has a median of a certified model."""
    return row.status == "done" and row.valid and row.framework is not None and row.p50.value is not None


def pairs(rows: Sequence[Row], medians: Medians) -> list[Pair]:
    """Every native row with every ONNX row of the same model and way of measuring, in the order of the rows.

    Verdicts hold with 95 % confidence for all pairs of one profile together.
    """
    onnx = [row for row in rows if row.format == "onnx"]
    both = [
        (native, other)
        for native in rows
        if native.framework is not None and native.format != "onnx"
        for other in onnx
        if all(getattr(native, key) == getattr(other, key) for key in SAME) and _same_precision(native, other)
    ]
    families: dict[str, list[tuple[Row, Row]]] = {}
    for native, other in both:
        families.setdefault(native.profile, []).append((native, other))
    judged = {
        (native.cell, other.cell): verdict
        for family in families.values()
        for (native, other), verdict in zip(family, _judge(family, medians), strict=True)
    }
    return [Pair(native, other, *judged[native.cell, other.cell]) for native, other in both]


def _same_precision(first: Row, second: Row) -> bool:
    # A row that failed before its export has none, and is in the table all the same.
    return len({first.precision, second.precision} - {None}) < 2


def _judge(family: Iterable[tuple[Row, Row]], medians: Medians) -> list[tuple[Interval | None, Verdict]]:
    """The ratio second over first of each pair, and its verdict; rows that are not usable have no ratio."""
    ratios = [
        compare.ratio(medians[first.cell], medians[second.cell])
        if usable(first) and usable(second)
        else Ratio(reason="one of the two has no median")
        for first, second in family
    ]
    return [(_interval(judged.ratio), judged.verdict) for judged in compare.judge(ratios)]


def _interval(ratio: Ratio) -> Interval | None:
    return None if ratio.value is None else Interval(value=ratio.value, low=ratio.low, high=ratio.high)


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


def fastest(rows: Iterable[Row], medians: Medians) -> Fastest | None:
    """The lowest median of float32 rows; a lossy model is never ranked among them. Null without rows."""
    ranked = sorted((row for row in rows if usable(row) and row.precision == "float32"), key=lambda row: row.median)
    if not ranked:
        return None
    first, *others = ranked
    judged = _judge([(first, other) for other in others], medians)
    rivals = tuple(row for row, (_, verdict) in zip(others, judged, strict=True) if verdict != "slower")
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
