"""Limits of the load generator and the analysis: send lag, highest rate, cost of a large record."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import msgspec

from loadtest.benchmark.bench import Bench, Line, run
from loadtest.measure import locust_process
from loadtest.selftest import known_answers
from medserve import process
from medserve.errors import CannotRun

RATES = (500.0, 1000.0)
CONNECTIONS = 8
ROWS = 10_000_000

UNRECORDED = """
from loadtest.generator.records import Records
Records.note = lambda *_, **__: None
from loadtest.generator.locustfile import *
"""
"""A locustfile: the same users and the same stamps, without recording."""


def schedule(bench: Bench) -> Iterator[Line]:
    """Send lag on one core."""
    with bench.serving("null") as server:
        for rate in RATES:
            table = bench.ours(bench.plan(server.url, 20.0, mode="open-loop", arrivals="poisson", rate=rate))
            p50, p99 = (check.measured for check in known_answers.sending(table))
            at, note = f"at {rate:g}/s", f"{len(table):,} requests"
            yield Line(part="schedule", name=f"lag p50 {at}", value=p50, unit="ms", high=0.05, note=note)
            yield Line(part="schedule", name=f"lag p99 {at}", value=p99, unit="ms", high=0.5)


def generator(bench: Bench) -> Iterator[Line]:
    """Requests per second with and without recording, as the server counts them."""
    unrecorded = bench.new() / "unrecorded.py"
    unrecorded.write_text(UNRECORDED)
    recorded = locust_process.LOCUSTFILE
    rates: dict[Path, list[float]] = {recorded: [], unrecorded: []}
    try:
        for _ in range(bench.rounds):
            for locust_process.LOCUSTFILE in rates:
                rates[locust_process.LOCUSTFILE].append(_roofline(bench))
    finally:
        locust_process.LOCUSTFILE = recorded
    kept, bare = rates.values()
    rate = median(kept)
    yield Line(part="generator", name="recorded requests", value=rate, unit="/s", low=10_000)
    yield Line(part="generator", name="unrecorded requests", value=median(bare), unit="/s")
    cost = median(1 - with_ / without for with_, without in zip(kept, bare, strict=True))
    yield Line(part="generator", name="cost of recording", value=100 * cost, unit="%", high=10)


def _roofline(bench: Bench) -> float:
    words = ["-m", "loadtest.benchmark.canned", "--cpus", ",".join(map(str, bench.server_cpus))]
    child = process.start(words, stdout=subprocess.PIPE)
    assert child.stdout is not None
    try:
        url = msgspec.json.decode(child.stdout.readline(), type=dict[str, str])["url"]
        load = bench.plan(url, 4.0, model="canned", mode="closed-loop", users=CONNECTIONS)
        locust_process.generate(load, bench.new() / "locust.log")
    finally:
        process.stop(child)
    answered = msgspec.json.decode(child.stdout.read())
    if not answered["count"]:
        raise CannotRun("the load generator sent nothing")
    return float(answered["count"] / answered["seconds"])


def analysis(bench: Bench) -> Iterator[Line]:
    """The cost of reducing a record of ten million requests."""
    folder = str(bench.new())
    rows = max(1, round(ROWS * bench.scale))
    run("loadtest.benchmark.large", "record", folder, "--rows", str(rows))
    reduced = msgspec.json.decode(run("loadtest.benchmark.large", "reduce", folder), type=dict[str, float])
    note = f"{reduced['requests']:,.0f} requests"
    yield Line(part="analysis", name="time", value=reduced["seconds"], unit="s", high=60, note=note)
    yield Line(part="analysis", name="peak memory", value=reduced["peak_bytes"] / 1e9, unit="GB", high=2, note=note)
