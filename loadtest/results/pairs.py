"""Which cells of a run are compared with which, in families whose verdicts hold together, and two runs with each other.

Every comparison of two cells comes from here: `medserve compare`, the report's tables and the claims.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations, product
from math import isfinite, log
from statistics import fmean, stdev
from typing import Any, Literal, get_args

from msgspec import Struct

from loadtest.analysis.compare import MARGIN, RUNS, Judged, Ratio, between_runs, judge, ratio, swapped
from loadtest.results.row import OURS, Row
from loadtest.results.table import MeasuredCell, Run
from medserve.errors import BadInput
from medserve.spec import LoadProfile

Kind = Literal[
    "native against ONNX",
    "framework against framework",
    "ONNX against ONNX",
    "format against format",
    "runtime against runtime",
    "reduced precision against float32",
    "batch against batch",
    "size against size",
    "tuned against default",
    "threads against threads",
    "dispatch against dispatch",
    "variant against variant",
    "server against server",
    "copy against copy",
]
"""Of pairs that differ in nothing else; frameworks and formats bring runtimes with them."""
KINDS: tuple[Kind, ...] = get_args(Kind)
EXPORTED = ("framework", "format", "runtime")
"""What differs between two exports of a network, or of one recipe's networks."""
AXES: dict[tuple[str, ...], Kind] = {
    ("precision",): "reduced precision against float32",
    ("batch", "profile"): "batch against batch",
    ("size",): "size against size",
    ("settings",): "tuned against default",
    ("threads",): "threads against threads",
    ("dispatch", "batch_images", "instances"): "dispatch against dispatch",
    ("variant",): "variant against variant",
    ("server",): "server against server",
    ("copy",): "copy against copy",
}
"""The fields of which at least one differs, and no other field of FIELDS, and what such a pair is."""
FIELDS = (
    *("dataset", "size", "architecture", "device", "settings", "threads", "dispatch", "batch_images", "instances"),
    *("variant", "server", "copy", "seed", "precision", "batch", "profile", *EXPORTED),
)
By = Literal[
    "runtime",
    "format",
    "precision",
    "framework",
    "batch",
    "size",
    "settings",
    "threads",
    "dispatch",
    "variant",
    "server",
    "copy",
]
SHOWN = tuple(kind for kind in KINDS if kind != "size against size")
"""The kinds that are shown unless others are asked for: more pixels take longer."""
BY: dict[By, tuple[Kind, ...]] = {
    "runtime": ("runtime against runtime", "native against ONNX", "format against format"),
    "format": ("native against ONNX", "format against format"),
    "precision": ("reduced precision against float32",),
    "framework": ("framework against framework", "ONNX against ONNX"),
    "batch": ("batch against batch",),
    "size": ("size against size",),
    "settings": ("tuned against default",),
    "threads": ("threads against threads",),
    "dispatch": ("dispatch against dispatch",),
    "variant": ("variant against variant",),
    "server": ("server against server",),
    "copy": ("copy against copy",),
}
"""The kinds of pairs that differ by an axis."""

MACHINE = ("cpu", "architecture", "cores_usable", "governor", "turbo_disabled", "memory_bytes", "gpus")
"""What must be equal of the machines; everything else that differs may be the cause that the user looks for."""
PROFILE = LoadProfile.__struct_fields__
TRAINED = ("dataset", "size", "architecture", "parameters", "classes")
"""What must be equal of the networks; weights of another training take as long to compute."""

Percentiles = Callable[[str], Mapping[int, float]]
"""From a cell's name to one percentile of each of its launches (ms), by block."""
Family = tuple[object, ...]
"""What identifies the comparisons whose verdicts hold together with 95 % confidence."""


class Pair(Struct, frozen=True):
    """Two rows of one kind, and the verdict on the second: a ratio below 1 when it is faster.

    Batches are compared by the latency per image.
    """

    kind: Kind
    first: Row
    second: Row
    judged: Judged

    def published(self, percentile: float) -> dict[str, Any]:
        """The keys and values of a comparison by a percentile (0 to 1) in JSON and CSV."""
        found = {"kind": self.kind} | {key: getattr(self.first, key) for key in ("dataset", "size", "profile", "mode")}
        found |= {"percentile": percentile, "first": self.first.deployment, "second": self.second.deployment}
        found |= published(self.judged)
        differs = {"second_size": self.second.size, "second_profile": self.second.profile}
        return found | differs | {"accuracy": self.first.accuracy, "second_accuracy": self.second.accuracy}


def published(judged: Judged) -> dict[str, Any]:
    """The keys and values of a verdict in JSON and CSV."""
    ratio = judged.ratio
    found: dict[str, Any] = {"value": ratio.value, "low": ratio.low, "high": ratio.high, "level": ratio.level}
    return found | {"verdict": judged.verdict, "launches": ratio.blocks, "more": judged.more, "reason": ratio.reason}


class Comparisons:
    """The verdicts on pairs of a run's rows by one percentile.

    A family is one kind of pair under one profile; of other pairs, those between the same two networks under the same
    profiles. The verdicts of a family hold together with 95 % confidence. Rows that are not usable are in no family.
    """

    def __init__(self, rows: Iterable[Row], percentiles: Percentiles, margin: float = MARGIN) -> None:
        self._rows, self._percentiles, self._margin = list(rows), percentiles, margin
        self._families: dict[tuple[str, str], dict[Family, list[tuple[Row, Row]]]] = {}
        self._judged: dict[Family, dict[tuple[str, str], Judged]] = {}
        self._pairs: dict[Kind, list[tuple[Row, Row]]] | None = None

    def judge(self, first: Row, second: Row) -> Judged:
        """The verdict on the second of two rows."""
        for row in (first, second):
            if not row.usable:
                reason = row.reason or ("no valid certificate" if row.framework else "the null runtime has no model")
                return Judged(ratio=Ratio(reason=reason), verdict="not comparable")
        family = _family(first, second)
        if family not in self._judged:
            members = self._members(first.profile, second.profile)[family]
            judged = judge([self._ratio(*pair) for pair in members], self._margin)
            self._judged[family] = {
                (one.cell, other.cell): verdict for (one, other), verdict in zip(members, judged, strict=True)
            }
        known = self._judged[family]
        if (first.cell, second.cell) in known:
            return known[first.cell, second.cell]
        return swapped(known[second.cell, first.cell])

    def pairs(self, kind: Kind) -> list[Pair]:
        """All pairs of a kind, in the order of the rows, without those measured with a timing mistake."""
        if self._pairs is None:
            self._pairs = {}
            for pair in combinations([row for row in self._rows if row.framework and row.mistake is None], 2):
                if (found := _kind(*pair)) is not None:
                    self._pairs.setdefault(found, []).append(pair[::-1] if _turned(found, *pair) else pair)
        return [Pair(kind, first, second, self.judge(first, second)) for first, second in self._pairs.get(kind, [])]

    def _ratio(self, first: Row, second: Row) -> Ratio:
        one, other = (
            {block: value / (row.batch if first.batch != second.batch else 1) for block, value in found.items()}
            for row, found in ((row, self._percentiles(row.cell)) for row in (first, second))
        )
        return ratio(one, other, self._margin)

    def _members(self, *profiles: str) -> dict[Family, list[tuple[Row, Row]]]:
        """The usable pairs by family, between the rows of two profiles or among those of one."""
        one, other = sorted(profiles)
        if (one, other) not in self._families:
            found = self._families.setdefault((one, other), {})
            sides = [[row for row in self._rows if row.profile == name and row.usable] for name in (one, other)]
            for first, second in combinations(sides[0], 2) if one == other else product(*sides):
                found.setdefault(_family(first, second), []).append((first, second))
        return self._families[one, other]


def compare(
    rows: Iterable[Row], percentiles: Percentiles, margin: float = MARGIN, kinds: Sequence[Kind] = SHOWN
) -> list[Pair]:
    """All pairs of a run by kind and profile, each in the order of its rows."""
    comparisons = Comparisons(rows, percentiles, margin)
    found: list[Pair] = []
    for kind in kinds:
        pairs = comparisons.pairs(kind)
        profiles = list(dict.fromkeys(pair.first.profile for pair in pairs))
        found += sorted(pairs, key=lambda pair: profiles.index(pair.first.profile))
    return found


def changes(before: Sequence[Run], new: Run, percentile: float, margin: float = MARGIN) -> dict[str, Judged]:
    """The verdict on every cell that all runs measured, by its name: new over those before, above 1 when it is slower.

    It takes RUNS runs before the new one to know how far runs differ by themselves. Raises BadInput that names the
    first thing that differs when the runs are not comparable, or share no cell.
    """
    measured = [{cell.cell.name: cell for cell in run.cells if cell.summaries} for run in (*before, new)]
    shared = [name for name in measured[-1] if all(name in cells for cells in measured)]
    if not shared:
        folders = " and ".join(str(run.folder) for run in (*before, new))
        raise BadInput(f"{folders} have no measured cell in common; compare runs of one study")
    for run, cells in zip(before, measured, strict=False):
        one, other = _machine(run), _machine(new)
        _check_equal((field, one.get(field), other.get(field)) for field in MACHINE)
        for name in shared:
            _check_comparable(cells[name], measured[-1][name])
    was, now = [run.percentiles(percentile) for run in before], new.percentiles(percentile)
    ratios = [
        between_runs([list(run[name].values()) for run in was], list(now[name].values()), margin) for name in shared
    ]
    found = dict(zip(shared, judge(ratios, margin), strict=True))
    if (missing := RUNS - len(before)) <= 0:
        return found
    return {
        name: judged
        if judged.verdict == "not comparable"
        else Judged(ratio=judged.ratio, verdict="between-run variance unknown", more=missing)
        for name, judged in found.items()
    }


def deviation(runs: Iterable[Run], cell: str, percentile: float = 0.5) -> float | None:
    """Standard deviation between runs of the logarithm of a percentile of a cell; null for fewer than two runs."""
    values = [list(run.percentiles(percentile).get(cell, {}).values()) for run in runs]
    means = [fmean(map(log, run)) for run in values if run and all(isfinite(value) and value > 0 for value in run)]
    return stdev(means) if len(means) > 1 else None


def versions(old: Run, new: Run) -> dict[str, tuple[str | None, str | None]]:
    """The versions that differ between the runs, old and new: possible causes of a change."""
    was, now = (dict(_machine(run).get("versions", {})) for run in (old, new))
    return {
        name: (was.get(name), now.get(name))
        for name in sorted(was.keys() | now.keys())
        if was.get(name) != now.get(name)
    }


def _kind(first: Row, second: Row) -> Kind | None:
    if first.framework is None or second.framework is None:
        return None
    differing = {key for key in FIELDS if getattr(first, key) != getattr(second, key)}
    for fields, kind in AXES.items():
        if differing and differing <= set(fields):
            return kind if _is_pair(kind, first, second) else None
    if not differing or not differing <= set(EXPORTED):
        return None
    onnx = (first.format == "onnx") + (second.format == "onnx")
    if first.framework != second.framework:
        if onnx == 0:
            return "framework against framework"
        return "ONNX against ONNX" if onnx == 2 and first.runtime == second.runtime else None
    if first.format == second.format:
        return "runtime against runtime"
    return "native against ONNX" if onnx == 1 else "format against format"


def _is_pair(kind: Kind, first: Row, second: Row) -> bool:
    if kind == "reduced precision against float32":
        return "float32" in (first.precision, second.precision)
    if kind == "batch against batch":
        # The same profile with another batch.
        return first.batch != second.batch and first.mode == second.mode and _stem(first) == _stem(second)
    return True


def _turned(kind: Kind, first: Row, second: Row) -> bool:
    """Whether the first of two rows is the one that is held against the other."""
    if kind == "batch against batch":
        return first.batch > second.batch
    if kind == "tuned against default":
        return first.settings == "tuned"
    if kind == "native against ONNX":
        return first.format == "onnx"
    if kind == "server against server":
        return second.server == OURS
    return kind == "reduced precision against float32" and first.precision != "float32"


def _stem(row: Row) -> str:
    """The name of a profile without its batch, which a load over HTTP has only above single images."""
    return row.profile.removesuffix(f"-{row.batch}" if row.mode == "in-process" else f"-b{row.batch}")


def _family(first: Row, second: Row) -> Family:
    if kind := _kind(first, second):
        return kind, frozenset((first.profile, second.profile))
    return frozenset((first.profile, second.profile)), frozenset((_network(first), _network(second)))


def _network(row: Row) -> tuple[object, ...]:
    return row.dataset, row.architecture, row.size, row.precision


def _check_comparable(old: MeasuredCell, new: MeasuredCell) -> None:
    compared: list[tuple[Any, Any, tuple[str, ...]]] = [(old.cell.profile, new.cell.profile, PROFILE)]
    if old.artifact and new.artifact:
        compared.append((old.artifact.checkpoint, new.artifact.checkpoint, TRAINED))
    for was, now, fields in compared:
        _check_equal((f"{field} of {was.name}", getattr(was, field), getattr(now, field)) for field in fields)


def _check_equal(found: Iterable[tuple[str, Any, Any]]) -> None:
    for what, old, new in found:
        if old != new:
            raise BadInput(f"the runs are not comparable: {what} is {old} in an earlier and {new} in the last one")


def _machine(run: Run) -> dict[str, Any]:
    return next((cell.machine for cell in run.cells if cell.machine), {})
