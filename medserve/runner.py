"""Walks a study: one process a job, everything resumable, every failure a row with its reason.

The folder of a run is its only state. A job that is done has its folder; a job that is not leaves nothing but its log.
"""

import fcntl
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from subprocess import PIPE
from typing import Any

import msgspec

from medserve import errors, machine, process, store
from medserve.errors import BadInput
from medserve.progress import describe
from medserve.spec import Cell, Failure, Launch, Prepared, Result, Study
from medserve.study import Deployed, Export, Plan, Training, plan


class Step(msgspec.Struct, frozen=True):
    """What the runner says while it works: `state` is started, progress, done or failed; times in seconds."""

    state: str
    kind: str
    name: str
    done: int
    total: int
    note: str = ""
    seconds: float | None = None
    seconds_left: float | None = None


Listener = Callable[[Step], None]


def run(study: Study, out: Path, listen: Listener) -> int:
    """Do all that is missing of a study in the folder `out`. Returns the number of failed jobs and cells.

    Raises BadInput when `out` holds another study or is in use.
    """
    out = out.resolve()
    with _locked(out):
        _settle(study, out)
        return _Run(study, plan(study), out, listen).walk()


class _Run:
    def __init__(self, study: Study, matrix: Plan, out: Path, listen: Listener) -> None:
        self._study, self._plan, self._out, self._listen = study, matrix, out, listen
        launches = study.launches * len(matrix.deployed)
        self._clock = _Clock(
            {
                "data": len({(training.dataset, training.size) for training in matrix.trainings}),
                "train": len(matrix.trainings),
                "export": len(matrix.exports),
                "in-process": launches,
                "http": launches,
            }
        )
        self._data: dict[tuple[str, int], Prepared | str] = {}
        self._failed = 0

    def walk(self) -> int:
        for training in self._plan.trainings:
            self._train(training)
        for export in self._plan.exports:
            self._export(export)
        for index in range(self._study.launches):
            block = list(self._plan.deployed)
            # A fixed order would give each deployment the same place in the machine's drift in every block.
            random.Random(f"{self._study.name} {index}").shuffle(block)  # noqa: S311 (an order, not a secret)
            for deployed in block:
                for kind in ("in-process", "http"):
                    self._launch(deployed, index, kind)
        return self._failed

    def _train(self, training: Training) -> None:
        data = self._prepare(training)
        folder = self._checkpoint(training)
        if isinstance(data, str) or (folder / "checkpoint.json").is_file():
            self._clock.skip("train")
            if isinstance(data, str):
                self._remember("train", training.name, data)
            return
        words = ["-m", "train", "run", "--dataset", training.dataset, "--size", str(training.size)]
        words += ["--architecture", training.architecture, "--framework", training.framework, "--out", str(folder)]
        for field, value in msgspec.to_builtins(training.recipe).items():
            words += ["--set", f"{field}={value}"]
        words += ["--unofficial"] if self._study.unofficial else []
        self._remember("train", training.name, self._run("train", training.name, words))

    def _export(self, export: Export) -> None:
        checkpoint = self._checkpoint(export.training)
        folder = self._artifact(export)
        if (folder / "artifact.json").is_file() or not (checkpoint / "checkpoint.json").is_file():
            self._clock.skip("export")
            return
        words = ["-m", "export", str(checkpoint), "--format", export.format, "--out", str(folder)]
        self._remember("export", export.name, self._run("export", export.name, words))

    def _launch(self, deployed: Deployed, index: int, kind: str) -> None:
        """One fresh process of a deployment (in process, or behind HTTP) and its cells that are not done, in order."""
        cells = tuple(
            cell
            for cell in deployed.cells
            if (cell.profile.mode == "in-process") == (kind == "in-process") and not self._is_done(cell, index)
        )
        data = self._prepare(deployed.export.training)
        if not cells or isinstance(data, str) or not (self._artifact(deployed.export) / "artifact.json").is_file():
            self._clock.skip(kind)
            return
        server, client = machine.divide_cpus(deployed.deployment.threads)
        scores = self._checkpoint(deployed.export.training) / "test_scores.npy"
        launch = Launch(
            study=self._study.name,
            index=index,
            cells=cells,
            artifact=str(self._artifact(deployed.export)),
            results=str(self._out / "results"),
            images=str(Path(data.folder) / "test_images.npy"),
            expected=None if deployed.deployment.runtime == "null" else str(scores),
            server_cpus=server,
            client_cpus=client,
            seed=index,
        )
        name = f"{deployed.deployment.name}.{index}"
        path = self._out / "logs" / f"{kind}.{name}.json"
        store.write_json(path, launch)
        env = machine.thread_environment(deployed.deployment.threads) if kind == "in-process" else {}
        reason = self._run(kind, name, ["-m", "loadtest", "launch", str(path)], env)
        for cell in cells:
            self._close(cell, index, reason)

    def _close(self, cell: Cell, index: int, reason: str | None) -> None:
        """Count a cell; one that a dead launch left without a result gets a failed one with the reason."""
        folder = self._out / "results" / cell.name / str(index)
        if not (folder / "result.json").is_file():
            result = Result(
                study=self._study.name,
                cell=cell,
                launch=index,
                status="failed",
                reason=reason or "the launch ended without a result",
                started=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            with store.new_folder(folder) as partial:
                store.write_json(partial / "result.json", result)
        if not self._is_done(cell, index):
            self._failed += 1

    def _prepare(self, training: Training) -> Prepared | str:
        """The unpacked data set of a training, or the reason why there is none. Asked once a run."""
        key = (training.dataset, training.size)
        if key not in self._data:
            words = ["-m", "train", "data", "prepare", training.dataset, "--size", str(training.size), "--json"]
            words += ["--unofficial"] if self._study.unofficial else []
            said: list[bytes] = []
            reason = self._run("data", f"{training.dataset}-{training.size}", words, said=said)
            self._data[key] = reason or msgspec.json.decode(b"".join(said), type=Prepared)
        return self._data[key]

    def _checkpoint(self, training: Training) -> Path:
        return self._out / "checkpoints" / training.name

    def _artifact(self, export: Export) -> Path:
        return self._out / "artifacts" / export.name

    def _is_done(self, cell: Cell, index: int) -> bool:
        path = self._out / "results" / cell.name / str(index) / "result.json"
        return path.is_file() and store.read_json(path, Result).status == "done"

    def _remember(self, stage: str, name: str, reason: str | None) -> None:
        path = self._out / "failures" / f"{stage}-{name}.json"
        if reason is None:
            path.unlink(missing_ok=True)
        else:
            store.write_json(path, Failure(stage=stage, name=name, reason=reason))
            self._failed += 1

    def _run(
        self,
        kind: str,
        name: str,
        words: list[str],
        env: Mapping[str, str] | None = None,
        said: list[bytes] | None = None,
    ) -> str | None:
        """Run one child to its end, asleep but for its events. Returns None, or the reason why it failed.

        What it prints beside events is appended to `said`.
        """
        started = time.monotonic()
        self._say("started", kind, name)
        log = self._out / "logs" / f"{kind}.{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        reason = ""
        with log.open("wb") as errors_to:
            child = process.start(words, stdout=PIPE, stderr=errors_to, env={**(env or {}), errors.EVENTS: "1"})
            try:
                assert child.stdout is not None
                for line in child.stdout:
                    event = _event(line)
                    if event is None:
                        if said is not None:
                            said.append(line)
                    elif event["event"] == "progress":
                        self._say("progress", kind, name, describe(event))
                    elif event["event"] == "error":
                        reason = str(event["reason"])
                code = child.wait()
            finally:
                process.stop(child)
        seconds = time.monotonic() - started
        self._clock.done(kind, seconds)
        if code == 0:
            self._say("done", kind, name, seconds=seconds)
            return None
        reason = reason or f"{process.last_line(log)} ({process.describe_exit(code)})"
        self._say("failed", kind, name, reason, seconds)
        return reason

    def _say(self, state: str, kind: str, name: str, note: str = "", seconds: float | None = None) -> None:
        self._listen(
            Step(state, kind, name, self._clock.finished, self._clock.total, note, seconds, self._clock.left())
        )


class _Clock:
    """Guesses the time left from the mean of the finished jobs of each kind."""

    def __init__(self, pending: dict[str, int]) -> None:
        self._pending = pending
        self._seconds: dict[str, list[float]] = {}
        self.finished = 0

    @property
    def total(self) -> int:
        """Jobs that this run does."""
        return self.finished + sum(self._pending.values())

    def skip(self, kind: str) -> None:
        """Take a job out that needs not, or cannot, be done."""
        self._pending[kind] -= 1

    def done(self, kind: str, seconds: float) -> None:
        """Note what a job took."""
        self._pending[kind] -= 1
        self.finished += 1
        self._seconds.setdefault(kind, []).append(seconds)

    def left(self) -> float | None:
        """Seconds left; None while a kind is pending of which none has finished."""
        waiting = {kind: count for kind, count in self._pending.items() if count}
        if not waiting.keys() <= self._seconds.keys():
            return None
        return sum(count * sum(self._seconds[kind]) / len(self._seconds[kind]) for kind, count in waiting.items())


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the run's folder; the lock goes with the process, however it ends."""
    out.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out / ".lock", os.O_CREAT | os.O_RDWR)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(f"{out}: another run works in this folder; wait for it or give another --out") from None
        yield
    finally:
        os.close(descriptor)


def _settle(study: Study, out: Path) -> None:
    """Sweep what a killed run left, and hold the folder to one study."""
    store.sweep(out)
    path = out / "study.json"
    if path.is_file():
        before, now = msgspec.to_builtins(store.read_json(path, Study)), msgspec.to_builtins(study)
        if different := [field for field in now if before[field] != now[field]]:
            raise BadInput(f"{out} holds a run of this study with another '{different[0]}'; give another --out")
    else:
        store.write_json(path, study)


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = msgspec.json.decode(line)
    except msgspec.DecodeError:
        return None
    return event if isinstance(event, dict) and "event" in event else None
