"""The self-test of the load generator: real servers with scripted delays, and the generator as in every measurement.

One repetition at one rate: known delays, a mixed distribution and a stall, all with Poisson arrivals. On the first two
servers the reference client sends before and after the generator. `known_answers` derives the checks from the records.
"""

import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec
import pyarrow as pa

from loadtest import samples
from loadtest.generator import payload, schedule
from loadtest.measure.locust_process import generate, roofline
from loadtest.measure.server_process import ServerProcess, serving
from loadtest.results import latency
from loadtest.selftest import known_answers
from loadtest.selftest.reference_client import open_loop
from medserve import machine, store
from medserve.errors import BadInput, CannotRun
from medserve.numbers import interval, number
from medserve.progress import Progress
from medserve.result import Check, SelfTest
from medserve.spec import Deployment, Dispatch, LoadProfile
from medserve.tables import DATASETS, check_size

KNOWN = {"delays_ms": (0.0, 1.0, 5.0, 20.0)}
# p50, p90 and p99 fall well inside the steps of 2, 8 and 30 ms. At the edge of a step a single request would decide
# between two of them.
MIXED = {"delays_ms": (0.5, 2.0, 8.0, 30.0), "shares": (0.25, 0.40, 0.30, 0.05)}
STALL_SECONDS = 1.0
STALL_RUN_SECONDS = 20.0
"""Seconds of a run with one stall: in a longer run fewer than one request in a hundred may wait for its end."""
MEDIAN_SECONDS = 10.0
"""Seconds that suffice for a median, and so for the floor and the known delays."""
WARMUP = 0.3
RUNS = 7
"""Runs of the generator and of the reference client in a repetition."""
AGAIN = 3
"""Repetitions of which the median counts, where a single one was asked for and failed."""
FEWEST = 50
"""Requests below which no run is judged."""


def run(
    sizes: Sequence[int], out: Path, *, rates: Sequence[float] = (100.0,), seconds: float = 3.0, repeats: int = 1
) -> SelfTest:
    """Test the load generator and write `out`: selftest.json, and the raw record of every run beside it.

    All `sizes` (pixels) get a roofline, everything else uses the first; `rates` in requests per second, each tested
    `repeats` times for `seconds` per distribution; a single repetition that fails becomes AGAIN. Raises BadInput for a
    test that cannot be judged, CannotRun when a server or the generator does not work at all.
    """
    _check_options(sizes, out, rates, seconds)
    started, began = datetime.now(UTC), time.monotonic()
    with store.new_folder(out) as folder, tempfile.TemporaryDirectory() as scratch, ExitStack() as servers:
        bench = _Bench(folder, Path(scratch), sizes[0], len(sizes) + RUNS * len(rates) * repeats)
        nulls = {size: servers.enter_context(bench.serving("null", size)) for size in dict.fromkeys(sizes)}
        rooflines = {size: bench.roofline(size, server) for size, server in nulls.items()}
        lasting = [servers.enter_context(bench.serving("delay", sizes[0], **options)) for options in (KNOWN, MIXED)]
        checks: list[Check] = []
        for rate in rates:
            repetitions = [bench.repetition(lasting, rate, seconds, seed) for seed in range(repeats)]
            judged: Literal["worst", "median"] = "worst"
            failed = [check for check in repetitions[0] if check.ok is False]
            if repeats == 1 and failed and all(check.limit for check in failed):
                # A busy moment of the machine fails one repetition, a generator that is wrong fails all of them.
                bench.expect(RUNS * (AGAIN - 1))
                repetitions += [bench.repetition(lasting, rate, seconds, seed) for seed in range(1, AGAIN)]
                judged = "median"
            checks += known_answers.of_repetitions(repetitions, f" at {rate:g}/s", judged)
        cpus = {"server_cpus": bench.server_cpus, "client_cpus": bench.client_cpus}
        done = SelfTest(
            started=started.isoformat(timespec="milliseconds"),
            seconds=round(time.monotonic() - began, 3),
            roofline=rooflines,
            checks=tuple(checks),
            machine=machine.fingerprint() | cpus,
            files=store.digests(folder, without="selftest.json"),
        )
        store.write_json(folder / "selftest.json", done)
    return done


class _Bench:
    """Servers on one core, the generator on another, and their records in `folder`."""

    def __init__(self, folder: Path, scratch: Path, size: int, runs: int) -> None:
        self._folder, self._scratch, self._size = folder, scratch, size
        self._progress = Progress("self-test", runs, "run")
        self._servers = self._runs = 0
        self.server_cpus, self.client_cpus = machine.divide_cpus(1)

    def serving(self, runtime: str, size: int | None = None, **options: Any) -> AbstractContextManager[ServerProcess]:
        """A ready server with a runtime that needs no model."""
        self._servers += 1
        dispatch: Dispatch = "concurrent" if options else "inline"
        deployment = Deployment(artifact="empty", runtime=runtime, batch_sizes=(1,), dispatch=dispatch, options=options)
        return serving(deployment, self.server_cpus, self._scratch / str(self._servers), size=size or self._size)

    def roofline(self, size: int, server: ServerProcess) -> float:
        """Requests per second of generator and null server together."""
        path = self._folder / f"roofline-{size}.parquet"
        rate = roofline(server, (size, size, 3), self.client_cpus, path)
        self._done(path)
        return rate

    def repetition(self, lasting: Sequence[ServerProcess], rate: float, seconds: float, seed: int) -> list[Check]:
        """All checks, once, on the `lasting` servers (known and mixed delays) and on one that stalls."""
        lengths = {"known": min(seconds, MEDIAN_SECONDS), "mixed": seconds, "stall": min(seconds, STALL_RUN_SECONDS)}
        plans = {
            name: LoadProfile(
                name=name, mode="open-loop", arrivals="poisson", rate=rate, seconds=length, warmup_seconds=WARMUP
            )
            for name, length in lengths.items()
        }
        # More than one request in a hundred must wait, or the p99 need not show the stall.
        at, length = WARMUP + lengths["stall"] / 3, min(STALL_SECONDS, lengths["stall"] / 5)
        with self.serving("delay", stall_at=at, stall_seconds=length) as stalling:
            (known, theirs), (mixed, theirs_mixed) = (
                self._pair(server, plans[name], seed, f"{name}-{rate:g}-{seed}")
                for server, name in zip(lasting, ("known", "mixed"), strict=True)
            )
            stalled = self._record(stalling, plans["stall"], seed, f"stall-{rate:g}-{seed}")
        arrivals = {name: schedule.arrivals(plan, seed) for name, plan in plans.items()}
        return [
            *known_answers.known(known, theirs, KNOWN["delays_ms"]),
            *known_answers.mixed(mixed, theirs_mixed),
            *known_answers.schedule(mixed, theirs_mixed, arrivals["mixed"]),
            *known_answers.sending(mixed),
            *known_answers.stall(stalled, arrivals["stall"], at, length),
            known_answers.answered([known, mixed, stalled], sum(map(len, arrivals.values()))),
        ]

    def _pair(self, server: ServerProcess, profile: LoadProfile, seed: int, name: str) -> tuple[pa.Table, pa.Table]:
        """The record of the generator, and that of the reference client, for half the time before and after it."""
        half = msgspec.structs.replace(profile, seconds=profile.seconds / 2)
        before = self._reference(server, half, seed, f"{name}-before")
        ours = self._record(server, profile, seed, name)
        after = self._reference(server, half, seed + 1, f"{name}-after")
        return ours, pa.concat_tables([before, after])

    def _reference(self, server: ServerProcess, profile: LoadProfile, seed: int, name: str) -> pa.Table:
        """What the reference client records, in this thread, on the generator's cores."""
        path = self._folder / f"{name}.parquet"
        before = machine.usable_cpus()
        machine.pin(self.client_cpus)
        try:
            table = open_loop(self._load(server, profile, seed, path), sleeps=True)
        except OSError as error:
            raise CannotRun(server.why_dead() or f"self-test {name}: {error}") from None
        finally:
            machine.pin(before)
        samples.write_tables(path, [table])
        self._done(path)
        return samples.read(path)

    def _load(self, server: ServerProcess, profile: LoadProfile, seed: int, out: Path) -> payload.Load:
        shape = (self._size, self._size, 3)
        return payload.Load(
            url=server.url, model=server.model, profile=profile, shape=shape, out=str(out), seed=seed,
            cpus=self.client_cpus,
        )  # fmt: skip

    def _record(self, server: ServerProcess, profile: LoadProfile, seed: int, name: str) -> pa.Table:
        path = self._folder / f"{name}.parquet"
        generate(self._load(server, profile, seed, path), self._scratch / "locust.log", server.why_dead)
        table = samples.read(path)
        self._done(path)
        if not known_answers.has_truth(latency.after_warmup(table)).any():
            errors = [error for error in table["error"].unique().to_pylist() if error]
            raise CannotRun(f"self-test {name}: no answer has the server's stamps: {', '.join(errors)}")
        return table

    def expect(self, runs: int) -> None:
        """Count `runs` more than were planned."""
        self._progress.total += runs

    def _done(self, record: Path) -> None:
        self._runs += 1
        self._progress.update(self._runs, record.stem)


def as_text(done: SelfTest) -> str:
    """The checks and the rooflines, for a terminal."""
    width = max(len(check.name) for check in done.checks)
    lines = [f"{'':<{width}} {'measured':>10} {'95 %':>16} {'truth':>10} {'limit':>10}"]
    for check in done.checks:
        value, truth, limit = (f"{number(value):>10}" for value in (check.measured, check.truth, check.limit))
        verdict = {True: "ok", False: "FAILED", None: ""}[check.ok]
        ends = interval(check.low, check.high)
        lines.append(f"{check.name:<{width}} {value} {ends:>16} {truth} {limit} {check.unit:<3} {verdict}".rstrip())
    for size, rate in done.roofline.items():
        lines.append(f"{f'roofline of {size} px':<{width}} {number(rate):>10} requests/s")
    return "\n".join(lines)


def why_failed(done: SelfTest) -> str | None:
    """The first failed check in one line, and how to mend it; null when all hold."""
    if not done.failed:
        return None
    first, more = done.failed[0], len(done.failed) - 1
    measured = f"{number(first.measured)} {interval(first.low, first.high)}".rstrip()
    truth = f"{number(first.truth)} {first.unit}".rstrip()
    return (
        f"load-generator self-test failed: {first.name} is {measured}, the truth is {truth} "
        f"(may differ by {number(first.limit)}" + (f"; and {more} more" if more else "") + ")"
    )


def _check_options(sizes: Sequence[int], out: Path, rates: Sequence[float], seconds: float) -> None:
    if not sizes or not rates:
        raise BadInput("a self-test needs at least one size and one rate")
    for size in sizes:
        check_size(DATASETS["synthetic"], size)
    if min(rates) * min(seconds, MEDIAN_SECONDS) < FEWEST:
        raise BadInput(
            f"{min(rates):g} requests per second for {seconds:g} s are too few to judge; "
            f"expected {FEWEST} requests at least"
        )
    if out.exists() and not (out / "selftest.json").is_file() and any(out.iterdir()):
        raise BadInput(f"{out}: holds something other than a self-test; give another --out")
