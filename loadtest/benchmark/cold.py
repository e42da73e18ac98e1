"""Cold starts: from a fresh process to the first answer, without a compile cache, filling it, and reading it.

Each repetition starts a server of every kind once, so that disturbances affect all alike.
"""

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median

import msgspec
import numpy as np

from loadtest.benchmark.bench import columns
from loadtest.measure.server_process import serving
from medserve import machine, plugins, store
from medserve.numbers import number
from medserve.spec import Deployment

PARTS = ("import_seconds", "load_seconds", "ready_seconds", "first_answer_seconds")
"""Facts of `loadtest.measure.server_process`: since the start of the process, except `load_seconds`."""


COLUMNS = columns(
    ("artifact", "runtime", "compile cache"), ("importing, s", "loading, s", "ready, s", "answer, s", "memory, MiB")
)


class Start(msgspec.Struct, frozen=True):
    """One kind of start: medians over repetitions, in seconds, and the largest memory that a server had."""

    artifact: str
    runtime: str
    cache: str
    seconds: dict[str, float]
    peak_memory_bytes: int | None

    def cells(self) -> tuple[str, ...]:
        """The cells of a row of COLUMNS."""
        memory = None if self.peak_memory_bytes is None else self.peak_memory_bytes / 2**20
        seconds = (self.seconds[name] for name in PARTS)
        return self.artifact, self.runtime, self.cache, *map(number, (*seconds, memory))


def measure(folders: Iterable[Path], repeats: int) -> Iterator[Start]:
    """Start every artifact with each runtime that it is certified for. Raises CannotRun when one does not start."""
    kinds = [kind for folder in folders for kind in _kinds(folder)]
    found = defaultdict[tuple[Path, str, str], list[dict[str, float]]](list)
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as scratch:
            for folder, runtime, cache in kinds:
                place = str(Path(scratch) / f"{folder.name}.{runtime}") if cache else None
                found[folder, runtime, cache].append(_start(folder, runtime, place))
    for (folder, runtime, cache), starts in found.items():
        seconds = {name: round(median(one[name] for one in starts), 3) for name in PARTS}
        peaks = [int(one["peak_memory_bytes"]) for one in starts if "peak_memory_bytes" in one]
        yield Start(folder.name, runtime, cache, seconds, max(peaks, default=None))


def _kinds(folder: Path) -> Iterator[tuple[Path, str, str]]:
    artifact = store.read_artifact(folder)
    for proof in (artifact.certificate, *artifact.further):
        caches = "cache" in plugins.literals("serve.runtimes", proof.runtime).get("CACHES", ())
        if proof.valid:
            # The order of the starts fills the cache first, then reads it.
            yield from ((folder, proof.runtime, cache) for cache in ("", *(("filled", "read") if caches else ())))


def _start(folder: Path, runtime: str, cache: str | None) -> dict[str, float]:
    options = {} if cache is None else {"cache": cache}
    deployment = Deployment(artifact=folder.name, runtime=runtime, options=options)
    cpus, _ = machine.divide_cpus(1)
    with (
        tempfile.TemporaryDirectory() as logs,
        np.load(folder / "golden.npz") as golden,
        serving(deployment, cpus, Path(logs), folder) as server,
    ):
        server.answer_first(golden["images"][:1])
        return server.facts()
