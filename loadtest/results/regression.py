"""Two runs of the same cells, old and new: what became faster or slower, and whether they may be compared at all."""

from typing import Any

from loadtest.analysis.compare import MARGIN, Verdict, judge, unpaired
from loadtest.results.table import Launched, Run
from medserve.errors import BadInput
from medserve.spec import Noun

MACHINE = ("cpu", "architecture", "cores_usable", "governor", "turbo_disabled", "memory_bytes", "gpus")
"""What must be the same of the machines: everything else that a result says of them may be what is looked for."""
TRAINED = ("dataset", "size", "architecture", "parameters", "classes")
"""What must be the same of the networks: weights of another training compute as long."""


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
    before, after = ({one.cell.name: one for one in run.cells if one.counted} for run in (old, new))
    shared = [name for name in after if name in before]
    if not shared:
        raise BadInput(f"{old.folder} and {new.folder} have no measured cell in common; compare two runs of one study")
    _refuse(old, new, [(before[name], after[name]) for name in shared])
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
    """The versions that differ between the runs, old and new: what a change may come from."""
    was, now = (dict(_machine(run).get("versions", {})) for run in (old, new))
    return {
        name: (was.get(name), now.get(name))
        for name in sorted(was.keys() | now.keys())
        if was.get(name) != now.get(name)
    }


def _refuse(old: Run, new: Run, pairs: list[tuple[Launched, Launched]]) -> None:
    was, now = _machine(old), _machine(new)
    for field in MACHINE:
        if was.get(field) != now.get(field):
            raise _unlike(field, was.get(field), now.get(field))
    for before, after in pairs:
        if before.cell.profile != after.cell.profile:
            for field in type(before.cell.profile).__struct_fields__:
                one, other = (getattr(side.cell.profile, field) for side in (before, after))
                if one != other:
                    raise _unlike(f"{field} of {before.cell.profile.name}", one, other)
        networks = [side.artifact.checkpoint for side in (before, after) if side.artifact is not None]
        for field in TRAINED if len(networks) == 2 else ():
            one, other = (getattr(network, field) for network in networks)
            if one != other:
                raise _unlike(f"{field} of {networks[0].name}", one, other)


def _unlike(what: str, one: Any, other: Any) -> BadInput:
    return BadInput(f"the runs are not comparable: {what} is {one} in the old and {other} in the new one")


def _machine(run: Run) -> dict[str, Any]:
    return next((one.machine for one in run.cells if one.machine), {})
