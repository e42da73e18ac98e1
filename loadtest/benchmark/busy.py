"""Servers that are busy while they answer, one request at a time, with known answers.

Waits against Lindley's recursion, planted differences, overload, and campaigns of a server against itself.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from loadtest import samples
from loadtest.analysis import compare, intervals
from loadtest.analysis.within_launch import clopper_pearson
from loadtest.benchmark.bench import Bench, Line, tell
from loadtest.benchmark.queues import MIXED, queued
from loadtest.measure.server_process import ServerProcess
from loadtest.results import latency

RECORDS = 20
SERVERS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {"2 ms": ((2.0,), (1.0,)), "2, 8 and 40 ms": MIXED}
"""Milliseconds and their shares."""
UTILISATIONS = (0.5, 0.8)
STAGES = ("decode", "infer", "encode")
SECONDS, FULL_SECONDS = 20.0, 3.0
"""Of a record, and of the closed loop that tells a server's capacity."""
USERS = 8
AHEAD_NS = 1e6
"""By so much a request is due before the answer that it waits for: it has arrived by then."""

PLANTED = (20.0, 50.0)
"""Microseconds by which one server is slower than another."""
PLANTED_RATE = 20.0
"""Requests/s of each: a tenth meets another one on the core of the servers."""
BLOCKS = 10

DEADLINE_MS, QUEUE = 100.0, 128
OVER, UNDER = 1.5, 0.8
"""Shares of the capacity at which requests must be refused, and at which none may be."""
OVER_SECONDS = 60.0

CAMPAIGNS, LAUNCHES = 40, 5
SLOWER = 1.1


def waits(bench: Bench) -> Iterator[Line]:
    """Mean waits and p99 of records against the recursion over their own arrivals and logged service times."""
    runs = max(2, round(RECORDS * bench.scale))
    for name, (delays, shares) in SERVERS.items():
        for utilised in UTILISATIONS:
            found: dict[str, list[float]] = {"mean wait": [], "p99": [], "utilisation": []}
            for seed in range(runs):
                options = {"delays_ms": delays, "shares": shares, "seed": seed, "busy": True}
                with bench.serving("delay", dispatch="inline", options=options) as server:
                    service = float(np.dot(delays, shares)) / 1e3 + _beside(bench, server, seed) / 1e9
                    load = bench.plan(
                        server.url, SECONDS, seed=seed, mode="open-loop", arrivals="poisson", rate=utilised / service
                    )
                    bench.ours(load)
                for key, value in _away(Path(load.out or "")).items():
                    found[key].append(value)
                tell(f"{name} at {utilised:.0%}, {seed + 1}/{runs}: " + ", ".join(
                    f"{key} {values[-1]:+.1f} %" for key, values in found.items()
                ))  # fmt: skip
            used = np.mean(found.pop("utilisation"))
            for key, values in found.items():
                known = intervals.t_interval(values)
                note = f"[{_one(known.low)}, {_one(known.high)}] over {runs} records; utilisation measured {used:.0f} %"
                yield Line(
                    part="waits", name=f"{name} at {utilised:.0%}: {key}, against the recursion", value=known.value,
                    unit="%", low=-5, high=5, note=note,
                )  # fmt: skip


def _beside(bench: Bench, server: ServerProcess, seed: int) -> float:
    """Nanoseconds that a request costs the server beside its stages, from a closed loop that never idles it."""
    rows = bench.ours(bench.plan(server.url, FULL_SECONDS, seed=seed, mode="closed-loop", users=USERS))
    busy = latency.busy_ns(rows, STAGES)
    assert busy is not None
    return 1e9 / latency.answered_rate(rows) - busy


def _away(record: Path) -> dict[str, float]:
    """Per cent by which the waits and p99 of a record differ from the recursion, and how far the server was utilised.

    What a request costs beside the server's stages is, in the same record, the mean of what lies between two answers
    of which the second's request had arrived before the first was sent: a stall of the machine there is a part of the
    service. The way there and back is the median difference from the recursion.
    """
    rows = latency.by_planned_start(samples.read(record))
    arrivals = latency.planned_start(rows).astype(np.float64)
    service = sum(rows[f"{stage}_ns"].to_numpy().astype(np.float64) for stage in STAGES)
    answered = rows["server_sent_ns"].to_numpy().astype(np.float64)
    order = np.argsort(answered)
    back_to_back = arrivals[order[1:]] < answered[order[:-1]] - AHEAD_NS
    service += np.mean((np.diff(answered[order]) - service[order[1:]])[back_to_back])
    expected = queued(arrivals - arrivals[0], service)
    measured = latency.from_intended_start(rows)
    kept = ~rows["warmup"].to_numpy()
    measured = measured[kept] - np.median(measured - expected)
    expected, service = expected[kept], service[kept]
    p99, truth = (intervals.percentile(np.sort(values), 0.99) for values in (measured, expected))
    return {
        "mean wait": 100 * (float((measured - service).mean() / (expected - service).mean()) - 1),
        "p99": 100 * (p99 / truth - 1),
        "utilisation": 100 * float(service.sum() / np.ptp(arrivals[kept])),
    }


def planted(bench: Bench) -> Iterator[Line]:
    """The difference of the medians of servers that are slower by a known time, loaded at once by random arrivals.

    The machine's speed changes within seconds by more than the difference, so that alternating blocks do not tell it.
    """
    blocks = max(3, round(BLOCKS * bench.scale))
    delays = (2.0, *(2.0 + more / 1e3 for more in PLANTED))
    medians: list[list[float]] = []
    for block in range(blocks):
        with ExitStack() as stack, ThreadPoolExecutor(len(delays)) as pool:
            servers = [stack.enter_context(bench.serving("delay", options=_busy(delay))) for delay in delays]
            loads = [
                bench.plan(server.url, SECONDS, seed=seed, mode="open-loop", arrivals="poisson", rate=PLANTED_RATE)
                for seed, server in enumerate(servers, len(delays) * block)
            ]
            found = pool.map(lambda load: float(np.median(latency.service_time(bench.ours(load)))) / 1e3, loads)
            medians.append(list(found))
        tell(f"block {block + 1}/{blocks}: p50 {', '.join(f'{value:.1f}' for value in medians[-1])} us")
    for place, true in enumerate(PLANTED, 1):
        known = intervals.t_interval([block[place] - block[0] for block in medians])
        assert known.value is not None
        note = f"found {known.value:.1f} us [{_one(known.low)}, {_one(known.high)}] over {blocks} blocks"
        yield Line(
            part="planted", name=f"{true:g} us between two busy servers, off by", value=known.value - true, unit="us",
            low=-5, high=5, note=note,
        )  # fmt: skip


def overload(bench: Bench) -> Iterator[Line]:
    """More than a server can answer: what it completes, and in time; and at less than that, what it refuses."""
    words: dict[str, Any] = {"dispatch": "thread", "queue": QUEUE, "deadline_ms": DEADLINE_MS}
    with bench.serving("delay", options=_busy(2.0), **words) as server:
        full = latency.answered_rate(bench.ours(bench.plan(server.url, FULL_SECONDS, mode="closed-loop", users=USERS)))
        for share, seconds in ((OVER, OVER_SECONDS), (UNDER, SECONDS)):
            load = bench.plan(server.url, seconds, mode="open-loop", arrivals="poisson", rate=share * full)
            rows = bench.ours(load)
            good, length = latency.succeeded(rows), load.profile.seconds
            refused = int(np.isin(rows["status"].to_numpy(), (503, 504)).sum())
            in_time = int((latency.from_intended_start(rows) <= DEADLINE_MS * 1e6).sum())
            note = f"of {full:.0f} requests/s; {refused:,} of {len(rows):,} refused in {length:g} s"
            at = f"at {share:g} times the capacity"
            if share > 1:
                value = 100 * int(good.sum()) / length / full
                yield Line(part="overload", name=f"completed {at}", value=value, unit="%", low=90, note=note)
                value = 100 * in_time / length / full
                name = f"completed {at} within {DEADLINE_MS:g} ms"
                yield Line(part="overload", name=name, value=value, unit="%", low=85, note=note)
            else:
                yield Line(part="overload", name=f"refused {at}", value=refused, high=0, note=note)


def campaigns(bench: Bench) -> Iterator[Line]:
    """Short campaigns of a server, itself again and one that is 10 % slower: how often each is said to differ."""
    count = max(2, round(CAMPAIGNS * bench.scale))
    differs = {"itself": 0, "slower": 0}
    spread = []
    for campaign in range(count):
        medians: list[dict[int, float]] = [{}, {}, {}]
        for launch in range(LAUNCHES):
            for place in np.roll(np.arange(3), launch + campaign).tolist():
                with bench.serving("delay", options=_busy(SLOWER if place == 2 else 1.0)) as server:
                    load = bench.plan(server.url, 1.0, seed=launch, mode="closed-loop")
                    medians[place][launch] = float(np.median(latency.service_time(bench.ours(load))))
        for name, other in (("itself", medians[1]), ("slower", medians[2])):
            ratio = compare.ratio(medians[0], other)
            (judged,) = compare.judge([ratio])
            differs[name] += judged.verdict in ("faster", "slower")
            spread += [] if ratio.deviation is None else [ratio.deviation]
        tell(f"campaign {campaign + 1}/{count}: called different {differs}")
    power = f"{LAUNCHES} launches; pairs spread by {100 * float(np.median(spread)):.1f} % within a block"
    for name, wanted in (("itself", {"high": 5.0}), ("slower", {"low": 90.0})):
        low, high = clopper_pearson(differs[name], count)
        note = f"{differs[name]} of {count}, 95 % interval {low:.0%} to {high:.0%}; {power}"
        words = "against itself" if name == "itself" else f"against one that takes {SLOWER:g} times as long"
        share = 100 * differs[name] / count
        yield Line(part="campaigns", name=f"called different, {words}", value=share, unit="%", note=note, **wanted)


def _busy(delay: float) -> dict[str, Any]:
    return {"delays_ms": [delay], "busy": True}


def _one(value: float | None) -> str:
    return "?" if value is None else f"{value:.1f}"
