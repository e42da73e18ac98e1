"""The search for an objective, many times over, against the rate at which long trials cross the limit."""

import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import msgspec
import numpy as np

from loadtest.analysis import intervals
from loadtest.analysis.slo_search import Objective
from loadtest.analysis.within_launch import clopper_pearson
from loadtest.benchmark.bench import SIZE, Bench, Line, tell
from loadtest.results import latency
from medserve import stage, store
from medserve.models import Artifact
from medserve.tables import FORMATS, pick

SEARCHES = 20
LONG_TRIALS = 10
LONG_SECONDS = 60.0
OBJECTIVE = Objective(p=0.99, limit_ms=5.0)
COVERED = 0.85
"""Share of the searches whose interval must hold the long-run answer."""


def measure(bench: Bench) -> Iterator[Line]:
    """20 searches on one server, then ten trials of a minute around their answers; numbers times the scale."""
    runtime, size = "delay", SIZE
    given: dict[str, Any] = {"options": {"delays_ms": [1.0]}}
    if bench.artifact is not None:
        found = store.read_json(bench.artifact / "artifact.json", Artifact)
        runtime, size = pick(FORMATS, "format", found.format).runtime, found.checkpoint.size
        given = {"artifact": bench.artifact}
    count, part = max(1, round(SEARCHES * bench.scale)), "objective"
    ended: list[tuple[float, float, float]] = []
    with bench.serving(runtime, size=size, **given) as server:
        for seed in range(count):
            began = time.monotonic()
            words = ["-m", "medserve.cli", "load", "--url", server.url, "--objective", "p99<5ms", "--json"]
            code, printed, reason = stage.run([*words, "--seed", str(1000 * seed)], bench.new() / "log")
            seconds = time.monotonic() - began
            answer = {} if code else msgspec.json.decode(printed)
            if answer and answer["high"]:
                ended.append((answer["low"], answer["high"], seconds))
            said = f"{answer['low']} to {answer['high']}, {len(answer['trials'])} trials" if answer else reason
            tell(f"search {seed + 1}/{count}: {said}, {seconds:.0f} s")
        if not ended:
            yield Line(part=part, name="searches with an answer", value=0.0, low=count)
            return
        lows, highs, seconds_taken = zip(*ended, strict=True)
        rates = np.geomspace(0.9 * min(lows), 1.1 * max(highs), max(2, round(LONG_TRIALS * bench.scale)))
        reached = []
        for rate in rates:
            load = bench.plan(
                server.url, LONG_SECONDS, model=server.model, size=size, mode="open-loop", arrivals="poisson", rate=rate
            )
            values = np.sort(latency.from_intended_start(bench.ours(load)))
            reached.append(intervals.percentile(values, OBJECTIVE.p) / 1e6)
            tell(f"{rate:,.0f}/s for {LONG_SECONDS * bench.scale:g} s: p99 {reached[-1]:.3g} ms")
    # More load never makes it faster: what a moment of the machine slowed down does not end the range.
    smallest = np.minimum.accumulate(np.array(reached)[::-1])[::-1]
    truth = float(np.exp(np.interp(np.log(OBJECTIVE.limit_ms), np.log(smallest), np.log(rates))))
    held = sum(low <= truth <= high for low, high, _ in ended)
    low, high = clopper_pearson(held, len(ended))
    yield Line(part=part, name="searches with an answer", value=len(ended), low=count, note=f"of {count}")
    yield Line(part=part, name="median time", value=median(seconds_taken), unit="s", high=120)
    width = median(100 * (high / low - 1) for low, high, _ in ended)
    yield Line(part=part, name="median width", value=width, unit="%", high=15)
    note = f"{held} of {len(ended)}, 95 % interval {low:.0%} to {high:.0%}; the long-run answer is {truth:,.0f}/s"
    share = 100 * held / len(ended)
    yield Line(part=part, name="hold the long-run answer", value=share, unit="%", low=100 * COVERED, note=note)
