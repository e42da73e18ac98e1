"""Which cells of a run are compared with which: native with ONNX, framework with framework, one export with another."""

from collections.abc import Callable, Iterable, Mapping
from itertools import combinations
from typing import Literal

from loadtest.analysis.compare import MARGIN, Verdict, judge, ratio
from loadtest.results.row import Row
from medserve.spec import Noun

Kind = Literal["native against ONNX", "framework against framework", "ONNX against ONNX"]

SAME = (
    "dataset",
    "size",
    "architecture",
    "device",
    "threads",
    "batch_images",
    "variant",
    "seed",
    "precision",
    "profile",
)
"""What two cells must have in common to be compared."""

Percentiles = Callable[[str], Mapping[int, float]]
"""From a cell's name to one percentile of each of its launches (ms), by block."""


class Compared(Noun, frozen=True, kw_only=True):
    """Two cells under one way of measuring: `value` is second over first, below 1 when the second is faster."""

    kind: Kind
    dataset: str
    size: int
    profile: str
    mode: str
    percentile: float
    first: str
    second: str
    value: float | None
    low: float | None
    high: float | None
    verdict: Verdict
    launches: int
    more: int | None
    reason: str | None


def compare(rows: Iterable[Row], percentiles: Percentiles, percentile: float, margin: float = MARGIN) -> list[Compared]:
    """All comparisons of a run, in the order of its rows.

    The verdicts of a family, one kind of pair under one profile, hold together with 95 % confidence.
    """
    found: list[Compared] = []
    sound = [row for row in rows if row.framework is not None and row.trap is None]
    for kind, pairs in _pairs(sound).items():
        for profile in dict.fromkeys(first.profile for first, _ in pairs):
            family = [pair for pair in pairs if pair[0].profile == profile]
            ratios = [ratio(percentiles(first.cell), percentiles(second.cell), margin) for first, second in family]
            for (first, second), judged in zip(family, judge(ratios, margin), strict=True):
                measured = judged.ratio
                reason = measured.reason
                if measured.value is None:
                    reason = reason or first.reason or second.reason
                found.append(
                    Compared(
                        kind=kind,
                        dataset=first.dataset,
                        size=first.size,
                        profile=profile,
                        mode=first.mode,
                        percentile=percentile,
                        first=first.deployment,
                        second=second.deployment,
                        value=measured.value,
                        low=measured.low,
                        high=measured.high,
                        verdict=judged.verdict,
                        launches=measured.blocks,
                        more=judged.more,
                        reason=reason,
                    )
                )
    return found


def _pairs(rows: list[Row]) -> dict[Kind, list[tuple[Row, Row]]]:
    found: dict[Kind, list[tuple[Row, Row]]] = {
        "native against ONNX": [],
        "framework against framework": [],
        "ONNX against ONNX": [],
    }
    for first, second in combinations(rows, 2):
        if any(getattr(first, key) != getattr(second, key) for key in SAME):
            continue
        onnx = (first.format == "onnx") + (second.format == "onnx")
        if first.framework == second.framework:
            if onnx == 1:
                native_first = (first, second) if second.format == "onnx" else (second, first)
                found["native against ONNX"].append(native_first)
        elif onnx == 0:
            found["framework against framework"].append((first, second))
        elif onnx == 2 and first.runtime == second.runtime:
            found["ONNX against ONNX"].append((first, second))
    return found
