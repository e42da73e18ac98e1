"""Simulated records of servers, with and without a warm-up, whose true percentiles are known."""

from collections.abc import Callable, Iterator
from math import exp, factorial, log

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.signal import lfilter

from loadtest import samples
from loadtest.analysis import intervals, steady
from loadtest.benchmark.bench import Line
from loadtest.generator import schedule
from loadtest.results import latency

Floats = NDArray[np.float64]
MS = 1e6
SPREAD = 0.2
"""Standard deviation of the logarithm of a request's latency."""
RATE = 100.0
"""Requests per second of a simulated record of a server."""
SECONDS = 30.0
PERCENTILES = [0.5, 0.9, 0.99]
WITHIN = 0.05
"""Largest relative difference of a printed percentile."""


def queued(arrivals: Floats, service: Floats) -> Floats:
    """The latencies of one server that works first come, first served (Lindley's recursion); all in one unit."""
    walk = np.concatenate([[0.0], np.cumsum(service[:-1] - np.diff(arrivals))])
    found: Floats = walk - np.minimum.accumulate(walk) + service
    return found


def _stalled(generator: np.random.Generator, arrivals: Floats, service: Floats) -> Floats:
    """Latencies of a server that stalls for 0.1 to 2 s, again and again."""
    length = float(np.exp(generator.uniform(log(0.1e9), log(2e9))))
    every = length * generator.uniform(3.0, 10.0)
    first = generator.uniform(0.0, every)
    into = (arrivals - first) % every
    waiting = np.where((arrivals >= first) & (into < length), length - into, 0.0)
    # What waits for the end of a stall is answered one after the other.
    return queued(arrivals + waiting, service) + waiting


Record = Callable[[np.random.Generator, Floats, Floats], Floats]


def _mixed(generator: np.random.Generator, arrivals: Floats, service: Floats) -> Floats:
    shares = generator.dirichlet([6.0, 3.0, 1.0])
    return queued(arrivals, service * generator.choice([1.0, 3.0, 8.0], len(service), p=shares))


def _slow_start(generator: np.random.Generator, arrivals: Floats, service: Floats) -> Floats:
    """The first 2 to 15 % of the time are 1.5 to 5 times as slow: the only kind with a warm-up."""
    until = generator.uniform(0.02, 0.15) * arrivals[-1]
    return np.where(arrivals < until, generator.uniform(1.5, 5.0), 1.0) * service


def _stepped(generator: np.random.Generator, arrivals: Floats, service: Floats) -> Floats:
    """The level changes by 10 to 100 %, up or down, somewhere between a quarter and the end of the record."""
    at = generator.uniform(0.25, 0.95) * arrivals[-1]
    factor = generator.uniform(1.1, 2.0) ** generator.choice([-1, 1])
    return np.where(arrivals < at, 1.0, factor) * service


def _wandering(generator: np.random.Generator, arrivals: Floats, _service: Floats) -> Floats:
    correlation = generator.uniform(0.3, 0.9)
    noise = generator.standard_normal(len(arrivals)) * np.sqrt(1 - correlation**2)
    return np.asarray(MS * np.exp(SPREAD * lfilter([1.0], [1.0, -correlation], noise)))


RECORDS: dict[str, Record] = {
    "three service times, queued": _mixed,
    "stalls of 0.1 to 2 s": _stalled,
    "slow start": _slow_start,
    "a step": _stepped,
    "AR(1) of 0.3 to 0.9": _wandering,
}


def measure(trials: int) -> Iterator[Line]:
    """Percentiles after the warm-up that is found, against those of the whole record after the true warm-up."""
    for name, kind in RECORDS.items():
        generator = generator_of(name)
        near = found = 0
        for _ in range(trials):
            arrivals = np.cumsum(generator.exponential(1e9 / RATE, int(RATE * SECONDS)))
            service = MS * np.exp(SPREAD * generator.standard_normal(len(arrivals)))
            latencies = kind(generator, arrivals, service)
            # What is slower than its own service time allows began in the slow start.
            true = int((latencies > 1.4999 * service).sum()) if kind is _slow_start else 0
            start = steady.find(latencies, arrivals.astype(np.int64)).start
            printed, truth = (np.quantile(latencies[at:], PERCENTILES) for at in (start, true))
            near += bool(np.all(np.abs(printed / truth - 1) <= WITHIN))
            found += start > 0
        share = 100 * near / trials
        yield Line(part="records", name=f"p50, p90, p99 within 5 %: {name}", value=share, unit="%", low=95)
        low, high = (95.0, None) if kind is _slow_start else (None, 2.0)
        share = 100 * found / trials
        yield Line(part="records", name=f"warm-up found: {name}", value=share, unit="%", low=low, high=high)


def generator_of(name: str) -> np.random.Generator:
    """A generator per line, so that a line does not depend on those before it."""
    return np.random.default_rng(list(name.encode()))


MIXED = (2.0, 8.0, 40.0), (0.9, 0.09, 0.01)
"""Milliseconds of a server that is mostly fast, and their shares."""
REPEATS = 8
"""Simulated series of each queue: at 80 % the mean wait of a million requests is known to a hundredth."""


def theory(count: int, utilisations: tuple[float, ...] = (0.5, 0.8)) -> Iterator[Line]:
    """Mean waits and percentiles of simulated servers, by our schedule and our reduction, against queueing theory.

    The mean wait is Pollaczek's and Khinchine's, the distribution of M/D/1 is Erlang's (1909). A record has `count`
    requests; a figure is the mean over REPEATS of them, with its interval.
    """
    for utilised in utilisations:
        for name, (delays, shares) in {"M/D/1": ((2.0,), (1.0,)), "M/G/1": MIXED}.items():
            values, weights = np.asarray(delays) / 1e3, np.asarray(shares)
            mean, square = float(values @ weights), float(values**2 @ weights)
            rate = utilised / mean
            found: dict[str, list[float]] = {}
            for seed in range(REPEATS):
                arrivals = schedule.poisson(rate, 1.01 * count / rate, seed)[:count]
                service = np.random.default_rng([seed, count]).choice(values, len(arrivals), p=weights) * 1e9
                latencies = queued(arrivals.astype(np.float64), service)
                record = samples.as_table(
                    {
                        "intended_ns": arrivals, "sent_ns": arrivals, "done_ns": arrivals + np.rint(latencies),
                        "status": np.full(len(arrivals), 200), "batch": np.ones(len(arrivals)),
                        "warmup": np.zeros(len(arrivals), np.bool_),
                    }
                )  # fmt: skip
                reduced = latency.from_intended_start(record)
                found.setdefault("mean wait", []).append(float((reduced - service).mean()) / 1e6)
                if name == "M/D/1":
                    ordered = intervals.quantiles(np.sort(reduced), (0.5, 0.99))
                    for key, p in (("p50", 0.5), ("p99", 0.99)):
                        found.setdefault(key, []).append(ordered.values[p] / 1e6)
            truth = {"mean wait": 1e3 * rate * square / (2 * (1 - utilised))}
            if name == "M/D/1":
                truth |= {key: 1e3 * _md1_percentile(rate, mean, p) for key, p in (("p50", 0.5), ("p99", 0.99))}
            for key, each in found.items():
                known = intervals.t_interval([100 * (one / truth[key] - 1) for one in each])
                note = f"in truth {truth[key]:.4g} ms; [{known.low:.2f}, {known.high:.2f}]"
                line = Line(
                    part="theory", name=f"{name} at {utilised:.0%}: {key}", value=known.value, unit="%", note=note
                )
                yield msgspec.structs.replace(line, low=-1.0, high=1.0)


def _md1_percentile(rate: float, service: float, p: float) -> float:
    """The latency (s) that a share `p` of the requests of M/D/1 stays below, for Poisson arrivals per second.

    P(wait <= t) = (1 - rho) sum over k from 0 to floor(t/D) of (-x)^k / k! e^x with x = rate (t - k D).
    """

    def below(wait: float) -> float:
        terms = []
        for k in range(int(wait / service) + 1):
            x = rate * (wait - k * service)
            terms.append((-x) ** k / factorial(k) * exp(x))
        return (1 - rate * service) * sum(terms) - p

    # More than a share 1 - rho does not wait.
    wait = 0.0 if below(0.0) >= 0 else float(brentq(below, 0.0, 30 * service))
    return wait + service
