"""Two runs of one study, side by side: whether a repeated comparison has the same result."""

from pathlib import Path
from typing import NamedTuple

from loadtest.results import pairs, table
from loadtest.results.pairs import Compared
from loadtest.results.tabular import Cell, Column, Line, Table, as_markdown
from medserve.numbers import interval, number

MEDIAN = 0.5
OPPOSITE = {"faster", "slower"}
HEADS = ("pair", "profile", "px", "ratio", "again", "verdict", "again", "overlap")


class Twice(NamedTuple):
    """A pair in both runs."""

    old: Compared
    new: Compared

    @property
    def reversed(self) -> bool:
        """Whether the second is faster in one run and slower in the other."""
        return {self.old.verdict, self.new.verdict} == OPPOSITE

    @property
    def overlaps(self) -> bool | None:
        """Whether the two intervals of the ratio overlap; null when a run has no interval."""
        if self.old.low is None or self.old.high is None or self.new.low is None or self.new.high is None:
            return None
        return max(self.old.low, self.new.low) <= min(self.old.high, self.new.high)

    @property
    def name(self) -> str:
        """The two deployments and how they were measured."""
        return f"{self.old.second} against {self.old.first}, {self.old.profile}"


def twice(old: Path, new: Path) -> list[Twice]:
    """The pairs of both runs, by their medians. Raises BadInput when one is no run."""
    before, after = (_pairs(run) for run in (old, new))
    return [Twice(one, after[key]) for key, one in before.items() if key in after]


def markdown(found: list[Twice]) -> str:
    """A table of all pairs, and a summary of their agreement."""
    lines = []
    for one in found:
        overlap = {True: "yes", False: "no", None: ""}[one.overlaps]
        words = (f"{one.old.second} / {one.old.first}", one.old.profile, str(one.old.size))
        ratios = (Cell(number(side.value), interval(side.low, side.high)) for side in (one.old, one.new))
        lines.append(Line((*map(Cell, words), *ratios, Cell(one.old.verdict), Cell(one.new.verdict), Cell(overlap))))
    same = sum(one.old.verdict == one.new.verdict for one in found)
    overlaps = [one.overlaps for one in found if one.old.kind == "native against ONNX" and one.overlaps is not None]
    notes = (
        f"{len(found)} pairs: {same} with the same verdict, {sum(one.reversed for one in found)} from faster to slower "
        "or back.",
        f"Native against ONNX: {sum(overlaps)} of {len(overlaps)} intervals overlap.",
    )
    columns = tuple(Column(head, numeric=head == "px") for head in HEADS)
    return "\n\n".join(as_markdown(Table("", columns, tuple(lines), notes=notes)))


def _pairs(folder: Path) -> dict[tuple[object, ...], Compared]:
    run = table.read(folder)
    found = pairs.compare(table.rows(run), run.percentiles(MEDIAN).__getitem__, MEDIAN)
    return {(one.kind, one.dataset, one.size, one.profile, one.first, one.second): one for one in found}
