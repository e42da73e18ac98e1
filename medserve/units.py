"""Units of a study that another machine may do: a training, an export, or all that is measured in one sequence.

Each is done in a folder of its study on the machine that does it, so that one which was cut off goes on there, and one
which was done is not done again. Folders travel as Parts.
"""

import errno
import fcntl
import hashlib
import io
import json
import os
import platform
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from medserve import errors, machine, run_folder, runner, stage, store
from medserve.errors import BadInput, CannotRun
from medserve.job_runner import JobRunner
from medserve.jobs import Failure
from medserve.matrix import plan
from medserve.preparation import Preparation
from medserve.spec import Noun
from medserve.study import Study

MEASURED = ("selftest", "tuned", "peaks", "explained", "failures", "logs", "results")
"""The folders that come back from what was measured, in the order in which they are put down."""
NO_SPACE = os.strerror(errno.ENOSPC)


class Unit(Noun, frozen=True, kw_only=True):
    """One piece of work; `name` is that of the training or the export, of all that is measured that of the study."""

    kind: Literal["train", "export", "measure"]
    name: str
    study: Study


class Part(Noun, frozen=True):
    """A folder: a tar archive, and its SHA-256."""

    content: bytes
    sha256: str


class Outcome(Noun, frozen=True, kw_only=True):
    """What a unit made: folders by their paths in the study's folder, and its log; or the reason why it made nothing.

    `no_space` says that its machine's disk is full, `failed` how many cells and jobs failed of what was measured.
    """

    parts: dict[str, Part] = msgspec.field(default_factory=dict)
    log: bytes = b""
    reason: str | None = None
    no_space: bool = False
    failed: int = 0


class Lost(Exception):
    """A worker is gone, and what it did with it."""


class Facts(Noun, frozen=True, kw_only=True):
    """What a worker says of itself: the kind of its machine, its host, its folder, and the versions that it has."""

    kind: str
    host: str
    folder: str
    versions: dict[str, str]


def facts(kind: str, folder: Path) -> Facts:
    """Of this process. All workers under one kernel, those in containers too, have one host."""
    host = machine.read_text("/proc/sys/kernel/random/boot_id") or platform.node()
    return Facts(kind=kind, host=host, folder=str(folder), versions=machine.versions())


def key(study: Study) -> str:
    """The folder of a study among those of a worker: another study has another, one with more launches has not."""
    same = msgspec.structs.replace(study, launches=1)
    return f"{study.name}-{hashlib.sha256(store.encode(same)).hexdigest()[:16]}"


@contextmanager
def holding_host(*, alone: bool) -> Iterator[None]:
    """Hold this machine, beside others or `alone`; who waits to be alone lets no other in.

    The kernel frees it when the process ends, however it ends.
    """
    with ExitStack() as opened:
        names = (Path(tempfile.gettempdir(), f"medserve-{os.getuid()}-{what}.lock") for what in ("gate", "host"))
        flags = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW
        gate, host = (os.open(name, flags, 0o600) for name in names)
        for descriptor in (gate, host):
            opened.callback(os.close, descriptor)
        fcntl.flock(gate, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(host, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        if not alone:
            fcntl.flock(gate, fcntl.LOCK_UN)
        yield


def perform(unit: Unit, home: str) -> Outcome:
    """Do a unit on this machine, below the folder `home`."""
    folder = Path(home) / key(unit.study)
    try:
        with holding_host(alone=unit.kind == "measure"):
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / "study.json").is_file():
                store.write_json(folder / "study.json", unit.study)
            return _measure(unit, folder) if unit.kind == "measure" else _make(unit, folder)
    except OSError as error:
        return Outcome(reason=str(error), no_space=error.errno == errno.ENOSPC)
    except (BadInput, CannotRun) as error:
        return Outcome(reason=str(error), no_space=NO_SPACE in str(error))


def _make(unit: Unit, folder: Path) -> Outcome:
    """Train or export, as a run of the whole study would."""
    counts = {"data": 1, "environment": len(unit.study.environments), unit.kind: 1}
    jobs = JobRunner(folder, unit.study.job_hours, counts, {}, lambda _: None)
    made, matrix = Preparation(unit.study, folder, jobs), plan(unit.study)
    made.environments()
    if unit.kind == "train":
        made.train(next(one for one in matrix.trainings if one.name == unit.name))
    else:
        made.export_all([one for one in matrix.exports if one.name == unit.name])
    name = f"{'checkpoints' if unit.kind == 'train' else 'artifacts'}/{unit.name}"
    log, failed = (
        folder / "logs" / f"{unit.kind}.{unit.name}.log",
        folder / "failures" / f"{unit.kind}-{unit.name}.json",
    )
    said = log.read_bytes() if log.is_file() else b""
    if (folder / name).is_dir():
        return Outcome(parts={name: pack(folder / name)}, log=said)
    reason = store.read_json(failed, Failure).reason if failed.is_file() else "it made nothing"
    return Outcome(reason=reason, log=said, no_space=NO_SPACE in reason)


def _measure(unit: Unit, folder: Path) -> Outcome:
    """Measure all of a study in a process of its own, as `medserve run` does."""
    asked = folder / "asked.json"
    store.write_json(asked, unit.study)
    (folder / "logs").mkdir(exist_ok=True)
    code, printed, reason = stage.run(
        ["-m", "medserve.units", str(asked), str(folder)], folder / "logs" / "measure.log"
    )
    if code:
        raise CannotRun(reason)
    parts = {name: pack(folder / name, unit.study.launches) for name in MEASURED if (folder / name).is_dir()}
    return Outcome(parts=parts, failed=json.loads(printed)["failed"])


def is_made(folder: Path, name: str) -> str | None:
    """The digest of the manifest of a checkpoint or an artifact, `name` in the folder of a study; null without one."""
    path = folder / name / ("checkpoint.json" if name.startswith("checkpoints/") else "artifact.json")
    return store.sha256(path) if path.is_file() else None


def missing(study: Study, home: str, names: Mapping[str, str]) -> list[str]:
    """Those of the names that this machine lacks, or has with another digest of the manifest."""
    folder = Path(home) / key(study)
    return [name for name, digest in names.items() if is_made(folder, name) != digest]


def keep(study: Study, home: str, name: str, part: Part) -> None:
    """Put a checkpoint or an artifact that another machine made into the study's folder. Raises OSError."""
    unpack(part, Path(home) / key(study) / name)


def is_measured(study: Study, folder: Path) -> bool:
    """Whether a run's folder has every cell of a study, measured."""
    path = folder / "study.json"
    if not path.is_file() or store.read_json(path, Study) != study:
        return False
    cells = (cell for deployed in plan(study).deployed for cell in deployed.cells)
    return all(run_folder.launches_done(folder, cell) >= study.launches for cell in cells)


def pack(folder: Path, launches: int | None = None) -> Part:
    """A folder as it may travel: without what a killed writer left there, and of `results` with no more launches."""

    def kept(path: Path) -> bool:
        number = int(path.parts[1]) if folder.name == "results" and len(path.parts) > 1 else 0
        is_beyond = launches is not None and number >= launches
        return not is_beyond and not any(map(store.PARTIAL.fullmatch, path.parts))

    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if kept(name := path.relative_to(folder)):
                archive.write(path, name)
    return Part(made.getvalue(), hashlib.sha256(made.getvalue()).hexdigest())


def unpack(part: Part, target: Path) -> None:
    """Make `target` of a part, in place of what is there. Raises CannotRun for other bytes than were sent."""
    if hashlib.sha256(part.content).hexdigest() != part.sha256:
        raise CannotRun(f"{target}: its bytes changed on the way")
    with store.new_folder(target) as partial, zipfile.ZipFile(io.BytesIO(part.content)) as archive:
        # It drops what leads out of a folder from the names in it; tarfile does so only from Python 3.11.4 on.
        archive.extractall(partial)


def _main() -> None:
    asked, out = map(Path, sys.argv[1:])
    # An earlier command may have asked for more launches.
    study = run_folder.with_launches(store.read_json(asked, Study), out, 0)
    failed = runner.run(study, out, lambda _: None)
    print(json.dumps({"failed": failed}))


if __name__ == "__main__":
    errors.main(_main)
