"""Objectives on servers whose truth is known: `load --objective` by long trials, `load --check` by a script."""

import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadtest.analysis import intervals
from loadtest.analysis.slo_trials import Objective
from loadtest.analysis.within_launch import clopper_pearson
from loadtest.benchmark.bench import SIZE, Bench, Line, tell
from loadtest.benchmark.queues import queued
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

SHARES = (0.2, 0.35, 0.5, 0.65, 0.8, 1.25, 1.6, 2.0, 3.0, 5.0)
"""Requests above the limit of a p99, in truth, in percent: a server meets the objective below 1 %."""
CHECKS = 2
"""Checks of each server and share: 40 in all."""
RATES = {"concurrent": 200.0, "blocking": 60.0}
"""Requests per second of a check."""
FAST_MS, SLOW_MS, MEAN_MS = 2.0, 40.0, 5.0
SIMULATED = 1 << 20


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


def checks(bench: Bench) -> Iterator[Line]:
    """40 checks of p99 objectives, half of a server that blocks; fewer with a scale below 1."""
    right, undecided, wrong = 0, [], 0
    cases = [(kind, share) for kind in RATES for share in SHARES] * CHECKS
    cases = cases[: max(1, round(len(cases) * bench.scale))]
    # The middles of equally likely parts of an exponential distribution.
    service = -MEAN_MS * np.log1p(-(np.arange(40) + 0.5) / 40)
    added = _added(bench, service)
    for place, (kind, share) in enumerate(cases, 1):
        if kind == "blocking":
            options: dict[str, Any] = {"delays_ms": service.tolist(), "shares": [1.0] * len(service)}
            limit = _limit(service + added, RATES[kind], share / 100)
        else:
            options = {"delays_ms": [FAST_MS, SLOW_MS], "shares": [1 - share / 100, share / 100]}
            limit = SLOW_MS / 2
        dispatch = "inline" if kind == "blocking" else "concurrent"
        with bench.serving("delay", options={**options, "seed": place}, dispatch=dispatch) as server:
            words = ["-m", "medserve.cli", "load", "--url", server.url, "--check", f"p99<{limit:.2f}ms", "--json"]
            words += ["--rate", str(RATES[kind]), "--seed", str(1000 * place), "--arrivals", "poisson"]
            _, printed, reason = stage.run(words, bench.new() / "log")
        verdict = msgspec.json.decode(printed)["exceedance"]["verdict"] if printed else reason
        truth = "holds" if share < 1 else "fails"
        right += verdict == truth
        wrong += verdict in ("holds", "fails") and verdict != truth
        undecided += [share] if verdict == "undecided" else []
        tell(f"{place}/{len(cases)}, {kind}: {share:g} % above {limit:.2f} ms: {verdict}")
    part = "check"
    decided = right + wrong
    low, high = clopper_pearson(right, decided) if decided else (0.0, 1.0)
    note = f"{right} of {decided}, 95 % interval {low:.0%} to {high:.0%}"
    yield Line(
        part=part, name="right, of those decided", value=100 * right / max(1, decided), unit="%", low=95, note=note
    )
    note = f"with {', '.join(f'{share:g}' for share in sorted(undecided))} % above the limit" if undecided else ""
    yield Line(part=part, name="undecided", value=len(undecided), note=note)
    yield Line(part=part, name="without an answer", value=len(cases) - decided - len(undecided), high=0)


def _added(bench: Bench, service: NDArray[np.float64]) -> float:
    """Milliseconds that a request takes beyond its delay, by one user."""
    with bench.serving("delay", dispatch="inline", options={"delays_ms": service.tolist()}) as server:
        rows = bench.ours(bench.plan(server.url, 5.0, mode="closed-loop"))
    return float(np.median(latency.service_time(rows) - rows["infer_ns"].to_numpy())) / 1e6


def _limit(service: NDArray[np.float64], rate: float, share: float) -> float:
    """The latency (ms) that this share of the requests exceeds, by simulation: Poisson arrivals, one server."""
    generator = np.random.default_rng(0)
    arrivals = np.cumsum(generator.exponential(1e3 / rate, SIMULATED))
    return float(np.quantile(queued(arrivals, generator.choice(service, SIMULATED)), 1 - share))
