"""Two runs of the same cells, old and new: what became faster or slower, and whether they may be compared at all."""

from typing import Any

from loadtest.analysis.compare import MARGIN, Verdict, judge, unpaired
from loadtest.results.table import MeasuredCell, Run
from medserve.errors import BadInput
from medserve.spec import Noun

MACHINE = ("cpu", "architecture", "cores_usable", "governor", "turbo_disabled", "memory_bytes", "gpus")
"""What must be equal of the machines; everything else that differs may be the cause that the user looks for."""
TRAINED = ("dataset", "size", "architecture", "parameters", "classes")
"""What must be equal of the networks; weights of another training take as long to compute."""


class Changed(Noun, frozen=True, kw_only=True):
    """One cell in both runs: `value` is new over old, above 1 when it became slower."""

    cell: str
    percentile: float
    value: float | None
    low: float | None
    high: float | None
    verdict: Verdict
    launches: int
    more: int | None
    reason: str | None


def changes(old: Run, new: Run, percentile: float, margin: float = MARGIN) -> list[Changed]:
    """Compare every cell that both runs measured; their launches share no block.

    Raises BadInput that names the first thing that differs when the runs are not comparable, or share no cell.
    """
    before, after = ({cell.cell.name: cell for cell in run.cells if cell.summaries} for run in (old, new))
    shared = [name for name in after if name in before]
    if not shared:
        raise BadInput(f"{old.folder} and {new.folder} have no measured cell in common; compare two runs of one study")
    _check_comparable(old, new, [(before[name], after[name]) for name in shared])
    was, now = old.percentiles(percentile), new.percentiles(percentile)
    ratios = [unpaired(list(was[name].values()), list(now[name].values()), margin) for name in shared]
    return [
        Changed(
            cell=name,
            percentile=percentile,
            value=judged.ratio.value,
            low=judged.ratio.low,
            high=judged.ratio.high,
            verdict=judged.verdict,
            launches=judged.ratio.blocks,
            more=judged.more,
            reason=judged.ratio.reason,
        )
        for name, judged in zip(shared, judge(ratios, margin), strict=True)
    ]


def versions(old: Run, new: Run) -> dict[str, tuple[str | None, str | None]]:
    """The versions that differ between the runs, old and new: possible causes of a change."""
    was, now = (dict(_machine(run).get("versions", {})) for run in (old, new))
    return {
        name: (was.get(name), now.get(name))
        for name in sorted(was.keys() | now.keys())
        if was.get(name) != now.get(name)
    }


def _check_comparable(old: Run, new: Run, pairs: list[tuple[MeasuredCell, MeasuredCell]]) -> None:
    was, now = _machine(old), _machine(new)
    for field in MACHINE:
        if was.get(field) != now.get(field):
            raise _not_comparable(field, was.get(field), now.get(field))
    for before, after in pairs:
        if before.cell.profile != after.cell.profile:
            for field in type(before.cell.profile).__struct_fields__:
                values = [getattr(side.cell.profile, field) for side in (before, after)]
                if values[0] != values[1]:
                    raise _not_comparable(f"{field} of {before.cell.profile.name}", *values)
        networks = [side.artifact.checkpoint for side in (before, after) if side.artifact is not None]
        for field in TRAINED if len(networks) == 2 else ():
            values = [getattr(network, field) for network in networks]
            if values[0] != values[1]:
                raise _not_comparable(f"{field} of {networks[0].name}", *values)


def _not_comparable(what: str, old: Any, new: Any) -> BadInput:
    return BadInput(f"the runs are not comparable: {what} is {old} in the old and {new} in the new one")


def _machine(run: Run) -> dict[str, Any]:
    return next((cell.machine for cell in run.cells if cell.machine), {})
