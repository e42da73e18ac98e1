"""What the parts of the benchmark share: servers, plans, and the line of a figure."""

import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from loadtest import samples
from loadtest.generator.payload import Load
from loadtest.measure import locust_process
from loadtest.measure.monitor import Monitor
from loadtest.measure.server_process import ServerProcess, serving
from loadtest.results import latency
from loadtest.results.tabular import Column
from medserve import machine, process, store
from medserve.errors import CannotRun
from medserve.numbers import number
from medserve.result import Window
from medserve.spec import Deployment, LoadProfile

SIZE = 28
ROUNDS = 3
"""Pairs of blocks; a quick run has one."""
QUICK = 0.1
WARMUP = 1.0


def columns(texts: Sequence[str], numbers: Sequence[str] = ()) -> tuple[Column, ...]:
    """The columns of a table: of texts, and behind them of numbers."""
    return (*(Column(title, numeric=False) for title in texts), *map(Column, numbers))


FIGURES = columns(("part", "figure", "value", "target", "reached", "note"))


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One figure with its target, from `low` to `high`; `note` says why a value is missing."""

    part: str
    name: str
    value: float | None = None
    unit: str = ""
    low: float | None = None
    high: float | None = None
    note: str = ""

    @property
    def ok(self) -> bool | None:
        """Whether the target is reached; null where there is no target, or no value."""
        if self.value is None or (self.low is None and self.high is None):
            return None
        return (self.low is None or self.value >= self.low) and (self.high is None or self.value <= self.high)

    def cells(self) -> tuple[str, ...]:
        """The cells of a row of FIGURES."""
        bounds = (("at least", self.low), ("at most", self.high))
        target = ", ".join(f"{words} {bound:,g}" for words, bound in bounds if bound is not None)
        reached = {True: "yes", False: "NO", None: ""}[self.ok]
        return self.part, self.name, f"{number(self.value)} {self.unit}".rstrip(), target, reached, self.note


class Bench:
    """Servers and loads of one run, with all durations and sizes times `scale`; `windows` of the generator's core."""

    def __init__(self, scratch: Path, scale: float, artifact: Path | None) -> None:
        self.scratch, self.scale, self.artifact = scratch, scale, artifact
        self.rounds = ROUNDS if scale >= QUICK else 1
        self.server_cpus, self.client_cpus = machine.divide_cpus(1)
        self.windows: list[Window] = []
        self._count = 0

    def new(self) -> Path:
        """A folder of its own."""
        self._count += 1
        folder = self.scratch / str(self._count)
        folder.mkdir()
        return folder

    def serving(
        self, runtime: str, *, size: int = SIZE, artifact: Path | None = None, **rest: Any
    ) -> AbstractContextManager[ServerProcess]:
        """A ready server; without an artifact, its runtime must be one that needs no model."""
        name = "empty" if artifact is None else artifact.name
        deployment = Deployment(artifact=name, runtime=runtime, **{"batch_sizes": (1,)} | rest)
        return serving(deployment, self.server_cpus, self.new(), artifact, size)

    def plan(
        self, url: str, seconds: float, *, model: str = "empty", size: int = SIZE, seed: int = 0, **profile: Any
    ) -> Load:
        """A plan of `seconds` times the scale after a warm-up, whose record has a folder of its own."""
        kind = LoadProfile(
            name="benchmark", seconds=seconds * self.scale, warmup_seconds=WARMUP * min(1.0, self.scale), **profile
        )
        out = str(self.new() / "samples.parquet")
        shape = (size, size, 3)
        return Load(url=url, model=model, profile=kind, shape=shape, out=out, seed=seed, cpus=self.client_cpus)

    def ours(self, load: Load) -> pa.Table:
        """What the load generator measures: the rows after the warm-up."""
        assert load.out is not None
        record = Path(load.out)
        monitor = Monitor(None, self.client_cpus)
        locust_process.generate(load, record.with_name("locust.log"), look=monitor.look)
        self.windows += monitor.close()
        return latency.after_warmup(samples.read(record))

    def theirs(self, load: Load) -> pa.Table:
        """What the independent client of the open loop measures: the rows after the warm-up."""
        assert load.out is not None
        record = Path(load.out)
        store.write_json(record.with_name("load.json"), load)
        run("loadtest.selftest.reference_client", str(record.with_name("load.json")))
        return latency.after_warmup(samples.read(record))


def tell(line: str) -> None:
    """Print a line about progress."""
    print(line, file=sys.stderr, flush=True)


def run(*words: str) -> bytes:
    """Run a module to its end. Returns what it printed; raises CannotRun with its last line."""
    child = process.start(["-m", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        out, err = child.communicate()
    finally:
        process.stop(child)
    if child.returncode:
        lines = err.decode(errors="replace").strip().splitlines() or [process.describe_exit(child.returncode)]
        raise CannotRun(f"{words[0]}: {lines[-1]}")
    return out
