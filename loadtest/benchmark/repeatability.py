"""Two runs of one study, side by side: whether a repeated comparison has the same result."""

from pathlib import Path
from typing import NamedTuple

from loadtest.results import pairs, table
from loadtest.results.pairs import Pair
from loadtest.results.tabular import Cell, Column, Line, Table, as_markdown, interval_cell

MEDIAN = 0.5
OPPOSITE = {"faster", "slower"}
HEADS = ("pair", "profile", "px", "ratio", "again", "verdict", "again", "overlap")


class Twice(NamedTuple):
    """A pair in both runs."""

    old: Pair
    new: Pair

    @property
    def reversed(self) -> bool:
        """Whether the second is faster in one run and slower in the other."""
        return {self.old.judged.verdict, self.new.judged.verdict} == OPPOSITE

    @property
    def overlaps(self) -> bool | None:
        """Whether the two intervals of the ratio overlap; null when a run has no interval."""
        old, new = self.old.judged.ratio, self.new.judged.ratio
        if old.low is None or old.high is None or new.low is None or new.high is None:
            return None
        return max(old.low, new.low) <= min(old.high, new.high)

    @property
    def name(self) -> str:
        """The two deployments and how they were measured."""
        return f"{self.old.second.deployment} against {self.old.first.deployment}, {self.old.first.profile}"


def twice(old: Path, new: Path) -> list[Twice]:
    """The pairs of both runs, by their medians. Raises BadInput when one is no run."""
    before, after = (_pairs(run) for run in (old, new))
    return [Twice(one, after[key]) for key, one in before.items() if key in after]


def markdown(found: list[Twice]) -> str:
    """A table of all pairs, and a summary of their agreement."""
    lines = []
    for one in found:
        overlap = {True: "yes", False: "no", None: ""}[one.overlaps]
        first, second = one.old.first, one.old.second
        words = (f"{second.deployment} / {first.deployment}", first.profile, str(first.size))
        judged = (one.old.judged, one.new.judged)
        ratios = (interval_cell(side.ratio) for side in judged)
        verdicts = (Cell(side.verdict) for side in judged)
        lines.append(Line((*map(Cell, words), *ratios, *verdicts, Cell(overlap))))
    same = sum(one.old.judged.verdict == one.new.judged.verdict for one in found)
    overlaps = [one.overlaps for one in found if one.old.kind == "native against ONNX" and one.overlaps is not None]
    notes = (
        f"{len(found)} pairs: {same} with the same verdict, {sum(one.reversed for one in found)} from faster to slower "
        "or back.",
        f"Native against ONNX: {sum(overlaps)} of {len(overlaps)} intervals overlap.",
    )
    columns = tuple(Column(head, numeric=head == "px") for head in HEADS)
    return "\n\n".join(as_markdown(Table("", columns, tuple(lines), notes=notes)))


def _pairs(folder: Path) -> dict[tuple[object, ...], Pair]:
    run = table.read(folder)
    found = pairs.compare(table.rows(run), run.percentiles(MEDIAN).__getitem__)
    return {(one.kind, one.first.cell, one.second.cell): one for one in found}
