"""The load generator against clients of other designs, on the same servers, in alternating blocks."""

import math
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadtest.analysis import intervals, within_launch
from loadtest.benchmark.bench import SIZE, Bench, Line
from loadtest.generator import payload
from loadtest.results import latency
from medserve import machine, store
from medserve.errors import CannotRun
from medserve.models import Artifact
from medserve.numbers import interval, number
from medserve.tables import FORMATS, pick

DELAYS = np.round(np.random.default_rng(0).lognormal(math.log(3.0), 0.7, 1000), 3)
"""Milliseconds, in turn. Continuous, because percentiles between the steps of a few fixed delays have no error."""
RATE = 200.0
SCRIPT = """
local file = io.open("%s", "rb")
local whole = file:read("*a")
file:close()
request = function() return whole end
done = function(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format('\\n{"p50": %%g, "requests": %%d, "failed": %%d}\\n',
    latency:percentile(50), summary.requests, failed))
end
"""


def closed_loop(bench: Bench) -> Iterator[Line]:
    """The closed loop over one connection, each client less its own floor with the null server."""
    p50: dict[tuple[str, str], list[float]] = {}
    size, runtime = SIZE, "delay"
    settings: dict[str, Any] = {"options": {"delays_ms": [1.0]}}
    if bench.artifact is not None:
        found = store.read_json(bench.artifact / "artifact.json", Artifact)
        size, runtime = found.checkpoint.size, pick(FORMATS, "format", found.format).runtime
        settings = {"artifact": bench.artifact}
    with bench.serving(runtime, **settings) as model, bench.serving("null", size=size) as null:
        for _ in range(bench.rounds):
            for server, name in ((model, "model"), (null, "null")):
                load = bench.plan(server.url, 3.0, model=server.model, size=size, mode="closed-loop")
                request = payload.requests(load)[1][0]
                theirs = wrk(server.url, request, load.profile.seconds, bench.client_cpus, bench.new())
                p50.setdefault(("wrk", name), []).append(theirs)
                mine = np.sort(latency.from_intended_start(bench.ours(load)))
                p50.setdefault(("generator", name), []).append(intervals.percentile(mine, 0.5) / 1e3)
    middle = {key: median(values) for key, values in p50.items()}
    for (who, what), value in middle.items():
        yield Line(part="wrk", name=f"p50 of {what}, {who}", value=value, unit="us")
    least, own = (middle[who, "model"] - middle[who, "null"] for who in ("wrk", "generator"))
    yield Line(
        part="wrk",
        name="difference less floors, generator to wrk",
        value=100 * (own / least - 1),
        unit="%",
        low=-10,
        high=10,
        note=f"{own:.1f} us and {least:.1f} us",
    )


def wrk(url: str, request: bytes, seconds: float, cpus: tuple[int, ...], folder: Path) -> float:
    """The p50 in microseconds that wrk, in another language, measures in a closed loop over one connection.

    `folder` is for its script. Raises CannotRun without wrk, or when a request failed.
    """
    if shutil.which("wrk") is None:
        raise CannotRun("wrk is not installed (Debian package wrk)")
    body, script = folder / "request", folder / "wrk.lua"
    body.write_bytes(request)
    script.write_text(SCRIPT % body)
    words = ["wrk", "-t1", "-c1", f"-d{max(1, round(seconds))}s", "-s", str(script), url]
    before = machine.usable_cpus()
    machine.pin(cpus)  # wrk inherits it
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=seconds + 30)
    finally:
        machine.pin(before)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise CannotRun(f"wrk ended without a result: {' '.join((done.stderr or done.stdout).split())[:300]}")
    output = msgspec.json.decode(lines[-1], type=dict[str, float])
    if output["failed"] or not output["requests"]:
        raise CannotRun(f"wrk: {output['failed']:.0f} of {output['requests']:.0f} requests failed")
    return output["p50"]


def open_loop(bench: Bench) -> Iterator[Line]:
    """Poisson arrivals at a server with known delays, from the intended start. A new server restarts its script."""
    found: dict[str, list[NDArray[np.float64]]] = {"generator": [], "poller": []}
    for seed in range(bench.rounds):
        for who, measure in (("generator", bench.ours), ("poller", bench.theirs)):
            options = {"delays_ms": DELAYS.tolist()}
            with bench.serving("delay", dispatch="concurrent", options=options) as server:
                load = bench.plan(server.url, 10.0, seed=seed, mode="open-loop", arrivals="poisson", rate=RATE)
                found[who].append(latency.from_intended_start(measure(load)))
    together = [np.concatenate(found[who]) for who in ("generator", "poller")]
    a, b = (intervals.percentile(np.sort(values), 0.5) / 1e6 for values in together)
    note = f"{a:.3f} ms and {b:.3f} ms of {len(together[0]):,} requests each"
    yield Line(
        part="poller", name="p50, generator to poller", value=100 * (a / b - 1), unit="%", low=-10, high=10, note=note
    )
    found_p99 = [within_launch.percentile_interval(values, np.sort(values), 0.99) for values in together]
    words = " and ".join(one.reason or f"{number(one.value)} {interval(one.low, one.high)} ms" for one in found_p99)
    ends = [(one.low, one.high) for one in found_p99 if one.low is not None and one.high is not None]
    gap = max(0.0, max(low for low, _ in ends) - min(high for _, high in ends)) if len(ends) == 2 else None
    yield Line(part="poller", name="p99, gap between the intervals", value=gap, unit="ms", high=0.0, note=words)
