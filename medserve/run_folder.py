"""The folder of a run: whether a study may go on in it, and its lock."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from medserve import store
from medserve.errors import BadInput
from medserve.matrix import plan
from medserve.measures import DURATIONS
from medserve.result import Result
from medserve.spec import Cell, Noun
from medserve.study import Export, Study, Training

FOLDERS = (
    "results", "artifacts", "checkpoints", "logs", "failures", "selftest", "tuned", "peaks", "explained", "figures",
    "tables",
)  # fmt: skip
"""In a run's folder: what the run and its report write."""
CHANGES = "changes.json"


class Change(Noun, frozen=True, kw_only=True):
    """When a study was changed while it had a run, and in which fields."""

    when: str
    fields: tuple[str, ...]


class Changes(Noun, frozen=True, kw_only=True):
    """`changes.json`: every change of the study of a run, in time; `study.json` is the study of now."""

    changes: tuple[Change, ...]


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the run's folder; the lock goes with the process, however it ends."""
    out.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out / ".lock", os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(f"{out}: another run works in this folder; wait for it or give another --out") from None
        yield
    finally:
        os.close(descriptor)


def adopt(study: Study, out: Path) -> None:
    """Write the study of a run, and how it differs from the one before into `changes.json`; see `check`."""
    path, record = out / "study.json", out / CHANGES
    before = store.read_json(path, Study) if path.is_file() else study
    if before != study:
        known = store.read_json(record, Changes).changes if record.is_file() else ()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        made = Change(when=now, fields=tuple(_fields(before, study)))
        store.write_json(record, Changes(changes=(*known, made)))
    if before != study or not path.is_file():
        store.write_json(path, study)


def with_launches(study: Study, out: Path, more: int) -> Study:
    """The study with the launches that its run in `out` has, if these are more than its own, and `more` beyond them."""
    path = out / "study.json"
    before = store.read_json(path, Study).launches if path.is_file() else 0
    return msgspec.structs.replace(study, launches=max(study.launches, before) + more)


def _fields(before: Study, now: Study) -> list[str]:
    return [name for name in Study.__struct_fields__ if getattr(before, name) != getattr(now, name)]


def _differing(before: Study, now: Study) -> str:
    return ", ".join(f"'{name}'" for name in _fields(before, now))


def _lost(before: Study, now: Study, out: Path) -> str | None:
    """What a run in `out` has of a study, and another one that is to go on with it has not, or not in the same way.

    Null if nothing: what came to nothing may change.
    """
    if (now.name, now.unofficial) != (before.name, before.unofficial):
        return "its results bear another name, or its data may be other data"
    if now.launches < before.launches:
        return f"there are {before.launches} launches, not {now.launches}"
    was, will = plan(before), plan(now)
    kept: dict[str, Training | Export] = {made.name: made for made in will.trainings}
    kept |= {made.name: made for made in will.exports}
    before_made: list[Training | Export] = [
        *(made for made in was.trainings if (out / "checkpoints" / made.name).is_dir()),
        *(made for made in was.exports if (out / "artifacts" / made.name).is_dir()),
    ]
    for made in before_made:
        if kept.get(made.name) != made:
            return f"{made.name} is made otherwise, or not at all"
    cells = {cell.name: cell for deployed in will.deployed for cell in deployed.cells}
    for old in (cell for deployed in was.deployed for cell in deployed.cells if _is_measured(out, cell)):
        if (new := cells.get(old.name)) is None or not extends(new, old):
            return f"{old.name} is measured otherwise, or not at all"
    return None


def _is_measured(out: Path, cell: Cell) -> bool:
    return any(result.status == "done" for result in _results(out, cell))


def launches_done(out: Path, cell: Cell) -> int:
    """In how many launches a run in `out` has measured a cell, for as long as it asks or longer."""
    return sum(result.status == "done" and extends(result.cell, cell) for result in _results(out, cell))


def _results(out: Path, cell: Cell) -> Iterator[Result]:
    for path in (out / "results" / cell.name).glob("*/result.json"):
        yield store.read_json(path, Result)


def extends(new: Cell, old: Cell) -> bool:
    """Whether a cell is measured in the same way as another, for as long or longer.

    It may prepare more batches, if its own are padded to the same size as before.
    """
    if any(getattr(new.profile, name) < getattr(old.profile, name) for name in DURATIONS):
        return False
    if new.deployment.batch_images > 1 and new.deployment.batch_sizes != old.deployment.batch_sizes:
        return False
    if _padded(new) != _padded(old):
        return False
    same = msgspec.structs.replace(new.profile, **{name: getattr(old.profile, name) for name in DURATIONS})
    if new.profile.load is not None:
        # A record has the rate that its launch found, or of a study none.
        same = msgspec.structs.replace(same, rate=old.profile.rate)
    # The precision is the artifact's, whose name has it; older records do not say it.
    deployment = msgspec.structs.replace(
        new.deployment, batch_sizes=old.deployment.batch_sizes, precision=old.deployment.precision
    )
    if deployment.settings == "tuned":
        # They are chosen on the machine, not in the study.
        deployment = msgspec.structs.replace(deployment, options=old.deployment.options)
    return (deployment, same) == (old.deployment, old.profile)


def _padded(cell: Cell) -> int | None:
    return next((size for size in cell.deployment.batch_sizes if size >= cell.profile.batch), None)


def check(study: Study, out: Path) -> None:
    """Raise BadInput when `out` is neither free nor a run of this study. Changes nothing."""
    path = out / "study.json"
    if path.is_file():
        before = store.read_json(path, Study)
        if (lost := _lost(before, study, out)) is not None:
            raise BadInput(
                f"{out} holds a run of this study with another {_differing(before, study)}, in which {lost}; a run "
                "takes more launches, more time and more cells; for anything else give another --out, or remove it"
            )
    elif out.is_dir():
        for found in sorted(out.iterdir()):
            partial = store.PARTIAL.fullmatch(found.name)
            # A self-test may have been made by hand.
            made = found.name == "selftest" and (found / "selftest.json").is_file()
            if not (made or found.name == ".lock" or (partial and partial["name"] in ("study.json", "selftest"))):
                raise BadInput(f"{out} holds {found.name!r} and is no run; give another --out, or an empty folder")
    elif out.exists():
        raise BadInput(f"{out} is a file; give another --out")
