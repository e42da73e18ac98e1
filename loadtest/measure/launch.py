"""One launch: a fresh process of one deployment, whose cells are measured in order, each with its folder of results.

Cells in process are timed in this process. For cells over HTTP it starts the server and a Locust process per cell, and
sleeps meanwhile. A failure becomes the cell's result, with its reason and what was recorded until then.
"""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadtest import samples
from loadtest.generator.payload import Load, open_images, open_scores
from loadtest.measure.foreign_server import ForeignServer
from loadtest.measure.locust_process import generate
from loadtest.measure.monitor import Monitor
from loadtest.measure.server_process import ServerProcess
from loadtest.results import faults, latency
from medserve import machine, store
from medserve.errors import BadInput, CannotRun
from medserve.jobs import Launch
from medserve.models import Artifact
from medserve.result import Result, Window
from medserve.spec import Cell, LoadProfile


def launch(plan: Launch) -> list[str]:
    """Measure all cells of a launch and write their results. Returns the failed ones, each with its reason.

    Raises BadInput for a plan that cannot be followed.
    """
    _check(plan)
    with _scratch(Path(plan.results)) as scratch:
        return _Launch(plan, scratch).measure()


class _Measured(msgspec.Struct):
    """What a measurement of a cell leaves: files in `folder`, facts of the processes, windows of the monitor."""

    folder: Path
    cell: Cell
    process: dict[str, Any] = {}
    windows: tuple[Window, ...] = ()


class _Launch:
    def __init__(self, plan: Launch, scratch: Path) -> None:
        self._plan = plan
        self._scratch = scratch
        self._failed: list[str] = []
        self._artifact: Artifact | None = None
        self._images: NDArray[np.uint8]
        self._expected: NDArray[np.float32] | None = None
        self._machine: dict[str, Any] = {}

    def measure(self) -> list[str]:
        cells = self._plan.cells
        try:
            self._machine = machine.fingerprint()
            self._artifact = store.read_artifact(Path(self._plan.artifact))
            self._images = open_images(Path(self._plan.images))
            if self._plan.expected is not None:
                self._expected = open_scores(Path(self._plan.expected), len(self._images))
            given, taken = self._images.shape[1:], self._artifact.image_shape
            if given != taken:
                raise BadInput(f"{self._plan.images}: images of {given}; {self._artifact.name} takes {taken}")
        except BadInput as error:
            self._fail(cells, str(error))
            return self._failed
        timed = tuple(cell for cell in cells if cell.profile.mode == "in-process")
        if timed:
            self._in_process(timed)
        self._over_http(tuple(cell for cell in cells if cell not in timed))
        return self._failed

    def _in_process(self, cells: tuple[Cell, ...]) -> None:
        from loadtest.measure import inprocess

        deployment = cells[0].deployment
        machine.pin(self._plan.server_cpus)
        os.environ.update(machine.thread_environment(deployment.threads))
        # Timing the first calls needs a runtime that has run nothing; no other cell may then share the process.
        cold = any(cell.profile.mistake == "compile-inside" for cell in cells)
        try:
            runtime, _, fitting, why = inprocess.open_fitting(Path(self._plan.artifact), deployment, cold=cold)
        except (BadInput, CannotRun) as error:
            self._fail(cells, str(error))
            return
        if why:
            self._fail(tuple(cell for cell in cells if cell.profile.batch > fitting.batch_sizes[-1]), str(why))
            cells = tuple(
                msgspec.structs.replace(cell, deployment=fitting)
                for cell in cells
                if cell.profile.batch <= fitting.batch_sizes[-1]
            )
        for cell in cells:
            with self._cell(cell) as result:
                monitor = Monitor(os.getpid(), self._plan.server_cpus, deployment.device)
                timed = inprocess.measure(
                    runtime, fitting, cell.profile, self._images, self._expected, self._plan.seed, self._plan.stages
                )
                # This process is the timer: it reads the counters at the beginning and at the end only.
                monitor.look()
                result.windows = monitor.close()
                samples.write(result.folder / "samples.parquet", timed.samples)
                if timed.stages:
                    samples.write(result.folder / "stages.parquet", timed.stages, samples.STAGES)
                facts = {**machine.process_facts(), **timed.used, "runtime": runtime.facts()}
                result.process["timer"] = facts

    def _over_http(self, cells: tuple[Cell, ...]) -> None:
        server: ServerProcess | ForeignServer | None = None
        try:
            for index, cell in enumerate(cells):
                if server is None or server.why_dead():
                    artifact = Path(self._plan.artifact)
                    kind = ServerProcess if cell.deployment.server is None else ForeignServer
                    try:
                        server = kind(artifact, cell.deployment, self._plan.server_cpus, self._scratch)
                        server.wait_ready()
                        server.answer_first(np.asarray(self._images[:1]))
                    except (BadInput, CannotRun) as error:
                        # What did not load will not load for the next cell either.
                        self._fail(cells[index:], str(error), *([server.log] if server else []))
                        return
                with self._cell(cell) as result:
                    result.cell = self._at_rate(cell)
                    self._load(result.cell, server, result)
        finally:
            if server is not None:
                server.stop()

    def _at_rate(self, cell: Cell) -> Cell:
        """The cell with the rate that is its share of what this launch found its capacity to be. Raises CannotRun."""
        profile = cell.profile
        if profile.load is None:
            return cell
        folder = Path(self._plan.results) / f"{cell.deployment.name}.{profile.capacity}" / str(self._plan.index)
        if not (folder / "samples.parquet").is_file():
            raise CannotRun(f"its capacity is unknown: {profile.capacity} of this launch came to nothing")
        capacity = latency.answered_rate(samples.read(folder / "samples.parquet", latency.COLUMNS))
        if not capacity:
            raise CannotRun(f"its capacity is unknown: under {profile.capacity} nothing was answered")
        rate = round(profile.load * capacity, 3)
        return msgspec.structs.replace(cell, profile=msgspec.structs.replace(profile, rate=rate))

    def _load(self, cell: Cell, server: ServerProcess | ForeignServer, result: _Measured) -> None:
        out = result.folder / "samples.parquet"
        profile = cell.profile
        measured = (*self._plan.server_cpus, *self._plan.client_cpus)
        back_to_back = profile.mode == "closed-loop" and profile.users == 1 and not profile.gap_seconds
        load = Load(
            url=server.url,
            model=server.model,
            profile=profile,
            images=self._plan.images,
            expected=self._plan.expected,
            out=str(out),
            audit=str(result.folder / "audit.parquet") if back_to_back else None,
            seed=self._plan.seed,
            cpus=self._plan.client_cpus,
        )
        if (foreign := cell.deployment.server) is not None:
            load = msgspec.structs.replace(load, body=foreign.body, path=foreign.path)
        before = server.facts()
        log = self._scratch / "locust.log"
        monitor = Monitor(server.pid, measured, cell.deployment.device)
        try:
            with machine.avoid_cpus(measured):
                generate(load, log, server.why_dead, look=monitor.look)
        except CannotRun:
            shutil.copy(log, result.folder / log.name)
            raise
        finally:
            result.windows = monitor.close()
            after = server.facts()
            after |= {name: after[name] - before[name] for name in machine.USED if name in before and name in after}
            result.process["server"] = after
            if out.is_file():
                result.process["client"] = samples.read_facts(out)
            if server.log.stat().st_size:
                shutil.copy(server.log, result.folder / server.log.name)

    @contextmanager
    def _cell(self, cell: Cell) -> Iterator[_Measured]:
        """A cell's folder of results, written as a whole when the block ends, with or without an error."""
        began = time.monotonic()
        with store.new_folder(self._folder(cell)) as folder:
            measured = _Measured(folder, cell)
            reason = None
            started = _utc()
            try:
                yield measured
                record = folder / "samples.parquet"
                reason = _why_unusable(record)
                if reason is None and cell.profile.mistake != "compile-inside":
                    measured.process["steady"] = _mark_warmup(record, cell.profile)
            except (BadInput, CannotRun) as error:
                reason = str(error)
            except Exception as error:  # a framework may raise anything; it is this cell's result
                reason = f"{type(error).__name__}: {error}"
            self._write(measured, reason, started, time.monotonic() - began)

    def _fail(self, cells: tuple[Cell, ...], reason: str, *logs: Path) -> None:
        for cell in cells:
            with store.new_folder(self._folder(cell)) as folder:
                for log in logs:
                    shutil.copy(log, folder / log.name)
                self._write(_Measured(folder, cell), reason, _utc(), 0.0)

    def _write(self, measured: _Measured, reason: str | None, started: str, seconds: float) -> None:
        cell = measured.cell
        if reason is not None:
            reason = " ".join(reason.split())[:1000]
            self._failed.append(f"{cell.name}: {reason}")
        result = Result(
            study=self._plan.study,
            cell=cell,
            launch=self._plan.index,
            status="done" if reason is None else "failed",
            reason=reason,
            artifact=self._artifact,
            started=started,
            seconds=round(seconds, 3),
            machine=self._machine,
            process=measured.process,
            windows=measured.windows,
            selftest=self._plan.selftest,
            files=store.digests(measured.folder, without="result.json"),
        )
        store.write_json(measured.folder / "result.json", result)

    def _folder(self, cell: Cell) -> Path:
        return Path(self._plan.results) / cell.name / str(self._plan.index)


def _mark_warmup(path: Path, profile: LoadProfile | None = None) -> dict[str, Any]:
    """Mark the rows before the steady state as warm-up. Returns where it begins, or why there is none."""
    table, steadiness = latency.mark_warmup(samples.read(path), profile)
    samples.write_tables(path, [table.combine_chunks()], facts=samples.read_facts(path))
    found: dict[str, Any] = msgspec.to_builtins(steadiness)
    return found


def _why_unusable(path: Path) -> str | None:
    """Why a record has no result for its cell; null when it has."""
    table = samples.read(path, (*latency.COLUMNS, "error"))
    measured = latency.after_warmup(table)
    if not len(measured):
        return "no request was sent after the warm-up"
    return None if latency.succeeded(measured).any() else faults.failures(table)


def _check(plan: Launch) -> None:
    if not plan.cells:
        raise BadInput("the launch has no cells")
    if len({cell.deployment.name for cell in plan.cells}) > 1:
        raise BadInput("the cells of a launch must have the same deployment, which one fresh process serves")
    if len(plan.cells) > 1 and any(cell.profile.mistake == "compile-inside" for cell in plan.cells):
        raise BadInput("compilation is timed in a process of its own; leave the other cells to another launch")


@contextmanager
def _scratch(results: Path) -> Iterator[Path]:
    """A folder for logs and plans. Its name is one that `store.sweep` removes should this process be killed."""
    results.mkdir(parents=True, exist_ok=True)
    folder = store.partial_of(results / "launch")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _utc() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
