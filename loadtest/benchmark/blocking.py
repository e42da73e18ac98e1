"""What `medserve load` prints of servers that answer one request at a time, against what must be true of them.

The truth is Lindley's recursion over the intended starts and the service times that the server reported, plus what the
way there and back adds, which is the median difference from it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from loadtest import samples
from loadtest.analysis import intervals
from loadtest.benchmark.bench import Bench, Line, tell
from loadtest.benchmark.queues import queued
from loadtest.results import latency
from medserve import stage

RECORDS = 20
SERVERS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "2, 8 and 40 ms": (
        {"delays_ms": [2.0, 8.0, 40.0], "shares": [0.9, 0.09, 0.01]},
        ("--rate", "50", "--arrivals", "poisson", "--seconds", "20"),
    ),
    "1 s of stall every 6 s": (
        {"delays_ms": [1.0], "stall_at": 3.0, "stall_seconds": 1.0, "stall_every": 6.0},
        ("--rate", "100", "--seconds", "25"),
    ),
}
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def measure(bench: Bench) -> Iterator[Line]:
    """20 records of each server, times the scale: percentiles, those withheld, and exit codes."""
    runs = max(1, round(RECORDS * bench.scale))
    for name, (options, words) in SERVERS.items():
        away: dict[str, list[float]] = {"p90": [], "p99": []}
        withheld = failed = 0
        for seed in range(runs):
            out = bench.new() / "samples.parquet"
            with bench.serving("delay", dispatch="inline", options={**options, "seed": seed}) as server:
                given = ("--url", server.url, *words, "--seed", str(seed), "--out", str(out), "--json")
                code, printed, reason = stage.run(["-m", "medserve.cli", "load", *given], out.with_name("log"))
            failed += code != 0
            figures = msgspec.json.decode(printed)
            truth = _truth(out)
            carried = [key for key, p in PERCENTILES.items() if figures["n"] >= intervals.least_samples(p)]
            withheld += sum(figures[f"{key}_ms"] is None for key in carried)
            for key, found in away.items():
                if figures[f"{key}_ms"] is not None:
                    found.append(100 * abs(figures[f"{key}_ms"] / truth[key] - 1))
            tell(f"{name} {seed + 1}/{runs}: {reason or 'exit code 0'}, " + ", ".join(
                f"{key} {figures[f'{key}_ms']} ms, in truth {truth[key]:.2f}" for key in away
            ))  # fmt: skip
        for key, found in away.items():
            largest = max(found, default=None)
            yield Line(part="blocking", name=f"{name}: {key}, largest difference", value=largest, unit="%", high=10)
        yield Line(part="blocking", name=f"{name}: percentiles withheld", value=withheld, high=0)
        yield Line(part="blocking", name=f"{name}: exit codes other than 0", value=failed, high=0)


def _truth(record: Path) -> dict[str, float]:
    """The true percentiles (ms) of all requests after the configured warm-up."""
    rows = latency.by_planned_start(samples.read(record))
    arrivals = latency.planned_start(rows).astype(np.float64)
    arrivals -= arrivals[0]
    expected = queued(arrivals, rows["infer_ns"].to_numpy().astype(np.float64))
    floor = np.median(latency.from_intended_start(rows) - expected)
    kept = np.sort(expected[~rows["warmup"].to_numpy()] + floor) / 1e6
    return {key: intervals.percentile(kept, p) for key, p in PERCENTILES.items()}
