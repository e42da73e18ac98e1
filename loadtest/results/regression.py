"""Two runs of the same cells, old and new: what became faster or slower, and whether they may be compared at all."""

from collections.abc import Iterable
from typing import Any

from loadtest.analysis.compare import MARGIN, Judged, judge, unpaired
from loadtest.results.table import MeasuredCell, Run
from medserve.errors import BadInput
from medserve.spec import LoadProfile

MACHINE = ("cpu", "architecture", "cores_usable", "governor", "turbo_disabled", "memory_bytes", "gpus")
"""What must be equal of the machines; everything else that differs may be the cause that the user looks for."""
PROFILE = LoadProfile.__struct_fields__
TRAINED = ("dataset", "size", "architecture", "parameters", "classes")
"""What must be equal of the networks; weights of another training take as long to compute."""


def changes(old: Run, new: Run, percentile: float, margin: float = MARGIN) -> dict[str, Judged]:
    """The verdict on every cell that both runs measured, by its name: new over old, above 1 when it became slower.

    Launches of two runs share no block. Raises BadInput that names the first thing that differs when the runs are not
    comparable, or share no cell.
    """
    before, after = ({cell.cell.name: cell for cell in run.cells if cell.summaries} for run in (old, new))
    shared = [name for name in after if name in before]
    if not shared:
        raise BadInput(f"{old.folder} and {new.folder} have no measured cell in common; compare two runs of one study")
    one, other = _machine(old), _machine(new)
    _check_equal((field, one.get(field), other.get(field)) for field in MACHINE)
    for name in shared:
        _check_comparable(before[name], after[name])
    was, now = old.percentiles(percentile), new.percentiles(percentile)
    ratios = [unpaired(list(was[name].values()), list(now[name].values()), margin) for name in shared]
    return dict(zip(shared, judge(ratios, margin), strict=True))


def versions(old: Run, new: Run) -> dict[str, tuple[str | None, str | None]]:
    """The versions that differ between the runs, old and new: possible causes of a change."""
    was, now = (dict(_machine(run).get("versions", {})) for run in (old, new))
    return {
        name: (was.get(name), now.get(name))
        for name in sorted(was.keys() | now.keys())
        if was.get(name) != now.get(name)
    }


def _check_comparable(old: MeasuredCell, new: MeasuredCell) -> None:
    compared: list[tuple[Any, Any, tuple[str, ...]]] = [(old.cell.profile, new.cell.profile, PROFILE)]
    if old.artifact and new.artifact:
        compared.append((old.artifact.checkpoint, new.artifact.checkpoint, TRAINED))
    for was, now, fields in compared:
        _check_equal((f"{field} of {was.name}", getattr(was, field), getattr(now, field)) for field in fields)


def _check_equal(found: Iterable[tuple[str, Any, Any]]) -> None:
    for what, old, new in found:
        if old != new:
            raise BadInput(f"the runs are not comparable: {what} is {old} in the old and {new} in the new one")


def _machine(run: Run) -> dict[str, Any]:
    return next((cell.machine for cell in run.cells if cell.machine), {})
