"""`python -m loadtest.benchmark.bulk make|reduce FOLDER`: a large record, and the cost of reducing it.

Each is a process of its own, so that its peak memory is that of one record.
"""

import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import pyarrow as pa
import typer

from loadtest import samples
from medserve import errors, store
from medserve.result import Result
from medserve.spec import Cell, Deployment, LoadProfile

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Folder = Annotated[Path, typer.Argument(metavar="FOLDER")]

BLOCK = 1 << 20
GAP = 100_000
"""Nanoseconds between two arrivals: 10,000 a second."""


@app.command()
def make(folder: Folder, rows: Annotated[int, typer.Option(min=1)] = 10_000_000) -> None:
    """Write a record of an open loop, and the result that names it."""
    samples.write_tables(folder / "samples.parquet", _tables(rows))
    profile = LoadProfile(
        name="bulk", mode="open-loop", arrivals="poisson", rate=1e9 / GAP, seconds=rows * GAP / 1e9, warmup_seconds=0.0
    )
    result = Result(
        study="bulk",
        cell=Cell(deployment=Deployment(artifact="bulk", runtime="null"), profile=profile),
        launch=0,
        status="done",
        started="",
        files=store.digests(folder, without="result.json"),
    )
    store.write_json(folder / "result.json", result)


@app.command()
def reduce(folder: Folder) -> None:
    """Summarise the launch of the record, as a report does. Prints seconds, peak memory and requests."""
    from loadtest.results import launch_summary

    result = store.read_json(folder / "result.json", Result)
    began = time.perf_counter()
    summary = launch_summary.summarise(folder, result)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(msgspec.json.encode({"seconds": seconds, "peak_bytes": peak, "requests": summary.count}).decode())


def _tables(rows: int) -> Iterator[pa.Table]:
    generator = np.random.default_rng(0)
    start = 10**15
    for at in range(0, rows, BLOCK):
        count = min(BLOCK, rows - at)
        intended = start + np.cumsum(generator.exponential(GAP, count).astype(np.int64))
        start = int(intended[-1])
        sent = intended + generator.exponential(20_000, count).astype(np.int64)
        received = sent + generator.integers(20_000, 40_000, count)
        infer = generator.lognormal(np.log(500_000), 0.3, count).astype(np.int64)
        answered = received + infer + 20_000
        done = answered + generator.integers(20_000, 60_000, count)
        yield samples.as_table(
            {
                "intended_ns": intended,
                "sent_ns": sent,
                "first_byte_ns": done - 5_000,
                "done_ns": done,
                "server_received_ns": received,
                "server_sent_ns": answered,
                "queue_ns": np.full(count, 5_000),
                "decode_ns": np.full(count, 9_000),
                "infer_ns": infer,
                "encode_ns": np.full(count, 6_000),
                "status": np.full(count, 200),
                "image": (at + np.arange(count)) % 1024,
                "batch": np.ones(count, np.int64),
                "connection": np.arange(count) % 16,
                "warmup": np.zeros(count, np.bool_),
                "wrong": np.zeros(count, np.bool_),
            }
        )


if __name__ == "__main__":
    errors.main(app)
