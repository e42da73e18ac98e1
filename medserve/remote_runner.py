"""Runs a study on other machines: sends its units to workers, and puts what they make into the folder of the run.

Trainings and exports go to any worker. What is measured of a study is one unit, on one machine, once for each kind of
machine that the study names, each with a run's folder of its own; nothing else runs on that machine meanwhile.
"""

import errno
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec
from msgspec.structs import replace

from medserve import run_folder, runner, store, units
from medserve.errors import CannotRun
from medserve.job_runner import JobRunner, Listener
from medserve.machine import versions
from medserve.matrix import plan
from medserve.preparation import Preparation
from medserve.study import Export, Study
from medserve.units import Facts, Lost, Outcome, Unit

MOST_LOSSES = 25
"""So many times a unit may lose its worker."""
LOOK_SECONDS = 1.0
PATIENCE_SECONDS = 60.0
"""How long a unit waits while no worker is there that could do it."""


class Engine(Protocol):
    """Carries units to workers. `medserve.cluster.Cluster` is one."""

    def workers(self) -> dict[str, Facts | None]:
        """What each worker says of itself, by its address; null of one that is none of ours."""

    def ask(self, address: str, function: Callable[..., Any], *words: object) -> Any:
        """What a short function returns on a worker. Raises Lost."""

    def submit(self, address: str, name: str, unit: Unit, home: str) -> None:
        """Send a unit to a worker that has none."""

    def wait(self, seconds: float) -> Iterator[tuple[str, Outcome | Exception]]:
        """What has ended within so many seconds."""


class _Job(msgspec.Struct, kw_only=True):
    """A unit, the folder of its study here, and the run's folder for what is measured."""

    unit: Unit
    home: Path
    out: Path
    machine: str | None
    needs: set[str]
    losses: int = 0

    @property
    def title(self) -> str:
        """What it is called on the screen."""
        return f"{self.unit.name} on {self.machine}" if self.machine else self.unit.name

    @property
    def name(self) -> str:
        """Its name among all units."""
        where = f".{self.machine}" if self.machine else ""
        return f"{self.unit.kind}.{self.unit.name}.{self.unit.study.part[0]}{where}"


def run(
    study: Study, out: Path, listen: Listener, engine: Engine, shards: int = 1, patience: float = PATIENCE_SECONDS
) -> tuple[list[Path], int]:
    """Do all that is missing of a study in the folder `out`, divided into so many shards.

    Returns the folders of its runs, one a shard and kind of machine, and the number of failed units. Raises BadInput as
    `medserve.runner.run`, and CannotRun when the scheduler is gone or no worker comes.
    """
    out = out.resolve()
    parts = [study] if shards == 1 else [replace(study, shard=f"{index + 1}/{shards}") for index in range(shards)]
    homes = [out] if shards == 1 else [out / f"shard-{index + 1}" for index in range(shards)]
    for part, home in zip(parts, homes, strict=True):
        run_folder.check(part, home)
    with run_folder.locked(out):
        jobs = [job for part, home in zip(parts, homes, strict=True) for job in _jobs(part, home)]
        work = _Work(jobs, out, listen, engine, patience)
        for part, home in zip(parts, homes, strict=True):
            store.sweep(home, (*run_folder.FOLDERS, "machines"))
            run_folder.adopt(part, home)
            work.adopt_models(part, home)
        failed = work.walk()
        return [job.out for job in jobs if job.unit.kind == "measure"], failed


def _jobs(study: Study, home: Path) -> Iterator[_Job]:
    """The units of a study, in order; each needs those whose names it has."""
    matrix, one = plan(study), replace(study, machines=())
    trained: dict[str, str] = {}
    made: set[str] = set()
    for training in matrix.trainings:
        job = _Job(
            unit=Unit(kind="train", name=training.name, study=one), home=home, out=home, machine=None, needs=set()
        )
        trained[training.name] = job.name
        made.add(job.name)
        yield job
    for export in matrix.exports:
        if export.adopted is None:
            needs = {trained[export.training.name]}
            job = _Job(
                unit=Unit(kind="export", name=export.name, study=one), home=home, out=home, machine=None, needs=needs
            )
            made.add(job.name)
            yield job
    for kind in study.machines or (None,):
        out = home / "machines" / kind if kind else home
        unit = Unit(kind="measure", name=study.name, study=one)
        yield _Job(unit=unit, home=home, out=out, machine=kind, needs=set(made))


class _Work:
    """Which units wait, which are with a worker, and who may have which."""

    def __init__(self, jobs: list[_Job], out: Path, listen: Listener, engine: Engine, patience: float) -> None:
        self._waiting = {job.name: job for job in jobs}
        self._begun: dict[str, tuple[_Job, str, float]] = {}
        self._engine, self._patience = engine, patience
        self._versions = versions()
        self._workers: dict[str, Facts] = {}
        self._refused: dict[str, str] = {}
        self._had_worker: dict[str, float] = {}
        counts = {kind: sum(job.unit.kind == kind for job in jobs) for kind in ("train", "export", "measure")}
        adopted = {made.name for job in jobs for made in plan(job.unit.study).exports if made.adopted}
        counts["export"] += len(adopted)
        self._jobs = JobRunner(out, math.inf, counts, {}, listen)

    def adopt_models(self, study: Study, home: Path) -> None:
        """Put the models that were made elsewhere into the folder of the study."""
        Preparation(study, home, self._jobs).export_all([made for made in plan(study).exports if made.adopted])

    def walk(self) -> int:
        """Do all units. Returns how many failed."""
        for job in [job for job in self._waiting.values() if _is_done(job)]:
            del self._waiting[job.name]
            self._jobs.skip(job.unit.kind)
        while self._waiting or self._begun:
            self._look()
            for job in list(self._waiting.values()):
                if not job.needs & (self._waiting.keys() | self._begun.keys()):
                    self._give(job)
            for name, found in self._engine.wait(LOOK_SECONDS):
                self._end(name, found)
        return self._jobs.failed

    def _look(self) -> None:
        """Who is there. Workers of other versions are not taken: what they make would be something else."""
        self._workers = {}
        for address, facts in self._engine.workers().items():
            if address not in self._refused and (reason := self._objection(facts)):
                self._refuse_worker(address, reason)
            if facts is not None and facts.host not in self._refused and address not in self._refused:
                self._workers[address] = facts
                self._versions = facts.versions | self._versions

    def _objection(self, facts: Facts | None) -> str | None:
        if facts is None:
            return "`medserve worker` of this version did not start it"
        known = {name: (self._versions.get(name, version), version) for name, version in facts.versions.items()}
        differing = [f"{name} {theirs}, not {ours}" for name, (ours, theirs) in known.items() if ours != theirs]
        return f"it has {'; '.join(differing)}" if differing else None

    def _refuse_worker(self, who: str, reason: str) -> None:
        self._refused[who] = reason
        self._jobs.say("failed", "worker", who, reason, 0.0)

    def _give(self, job: _Job) -> None:
        """Send a unit to a worker that is free for it, or give it up when none has been there for too long."""
        fitting = {address: facts for address, facts in self._workers.items() if job.machine in (None, facts.kind)}
        now = time.monotonic()
        if fitting:
            self._had_worker[job.name] = now
        elif now - self._had_worker.setdefault(job.name, now) > self._patience:
            self._give_up(job)
            return
        busy = {address for _, address, _ in self._begun.values()}
        measured = {self._host(address) for one, address, _ in self._begun.values() if one.unit.kind == "measure"}
        for address, facts in fitting.items():
            if address in busy or facts.host in measured:
                continue
            try:
                self._send(job, address, facts)
            except Lost:
                continue
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                self._refuse_worker(facts.host, f"its disk is full: {error}")
                continue
            del self._waiting[job.name]
            self._begun[job.name] = job, address, now
            self._jobs.say("started", job.unit.kind, job.title)
            return

    def _host(self, address: str) -> str | None:
        facts = self._workers.get(address)
        return facts.host if facts else None

    def _send(self, job: _Job, address: str, facts: Facts) -> None:
        """Give a worker what a unit needs and its machine has not, and the unit."""
        matrix, unit = plan(job.unit.study), job.unit
        inputs: list[str] = []
        if unit.kind == "measure":
            inputs = [f"checkpoints/{made.name}" for made in matrix.trainings]
            inputs += [path for made in matrix.exports for path in _folders(made)]
        elif unit.kind == "export":
            inputs = [f"checkpoints/{made.training.name}" for made in matrix.exports if made.name == unit.name]
        digests = {name: digest for name in dict.fromkeys(inputs) if (digest := units.is_made(job.home, name))}
        if digests:
            for name in self._engine.ask(address, units.missing, unit.study, facts.folder, digests):
                part = units.pack(job.home / name)
                self._engine.ask(address, units.keep, unit.study, facts.folder, name, part)
        self._engine.submit(address, job.name, unit, facts.folder)

    def _end(self, name: str, found: Outcome | Exception) -> None:
        job, address, started = self._begun.pop(name)
        if isinstance(found, Lost):
            job.losses += 1
            if job.losses <= MOST_LOSSES:
                self._waiting[name] = job
                return
            found = CannotRun(f"its worker was lost {job.losses} times")
        if isinstance(found, Outcome) and found.no_space and (host := self._host(address)):
            self._refuse_worker(host, f"its disk is full: {found.reason}")
            self._waiting[name] = job
            return
        reason = (str(found) or type(found).__name__) if isinstance(found, Exception) else found.reason
        if isinstance(found, Outcome):
            _store(job, found)
            self._jobs.failed += found.failed
        self._fail_or_end(job, started, reason)

    def _give_up(self, job: _Job) -> None:
        there = ", ".join(sorted({facts.kind for facts in self._workers.values()})) or "none"
        reason = f"no worker of the kind {job.machine}; there is: {there}" if job.machine else "there is no worker"
        reason += "".join(f"; {who}: {why}" for who, why in self._refused.items())
        if job.unit.kind != "measure":
            raise CannotRun(f"{reason}; start one: medserve worker ADDRESS")
        del self._waiting[job.name]
        self._fail_or_end(job, time.monotonic(), reason)

    def _fail_or_end(self, job: _Job, started: float, reason: str | None) -> None:
        if job.unit.kind == "measure" and reason is not None:
            _link_inputs(job)
            runner.refuse(job.unit.study, job.out, lambda _: None, reason)
            run_folder.adopt(job.unit.study, job.out)
        self._jobs.failed += reason is not None
        self._jobs.ended(job.unit.kind, job.title, started, reason)


def _folders(made: Export) -> list[str]:
    """The folders of an artifact in that of its study, with its checkpoint's where that was made elsewhere."""
    return [f"artifacts/{made.name}", *([f"checkpoints/{made.training.name}"] if made.adopted else [])]


def _is_done(job: _Job) -> bool:
    if job.unit.kind == "measure":
        return units.is_measured(job.unit.study, job.out)
    where = "checkpoints" if job.unit.kind == "train" else "artifacts"
    return units.is_made(job.home, f"{where}/{job.unit.name}") is not None


def _store(job: _Job, made: Outcome) -> None:
    """Put what a unit made into its folder. What was measured replaces what another machine had measured there."""
    if made.log:
        path = job.out / "logs" / f"{job.unit.kind}.{job.unit.name}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        store.write_bytes(path, made.log)
    if job.unit.kind == "measure" and made.parts:
        _link_inputs(job)
        run_folder.adopt(job.unit.study, job.out)
    for name, part in made.parts.items():
        units.unpack(part, job.out / name)


def _link_inputs(job: _Job) -> None:
    """A run's folder of its own has the checkpoints and artifacts of the study, as links to the same files."""
    if job.out != job.home:
        for name in ("checkpoints", "artifacts"):
            if (job.home / name).is_dir():
                with store.new_folder(job.out / name) as partial:
                    shutil.copytree(job.home / name, partial, dirs_exist_ok=True, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
