"""Known-answer tests of the load generator: functions of records to the checks of a self-test.

The truth is the delay of each request, the `infer` stage that the server reports. It is compared with the latency from
the intended start, as in every measurement, less the floor, which is the p50 of the null server at the same rate.
"""

from collections.abc import Sequence
from math import inf, isfinite, nan
from typing import Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from loadtest.analysis import intervals
from loadtest.analysis.distribution import index_of_dispersion
from loadtest.results import latency
from loadtest.results.latency import succeeded
from medserve.result import Check

SLOPE = 0.02
MEDIAN = 0.02, 0.15
"""The limit for a median or p90: the larger of this share of the truth and this many milliseconds."""
TAIL = 0.05, 3.0
"""The same for a p99."""
WINDOW_NS = 100_000_000
"""Nanoseconds of a window in which arrivals are counted for their dispersion."""


def median(table: pa.Table) -> float:
    """The median latency from the intended start in milliseconds, after the warm-up."""
    return _percentile(_measured(table)[0], 0.5)


def known(table: pa.Table, floor: float, delays_ms: Sequence[float]) -> list[Check]:
    """Known delays: the regression line of measured on true medians, and each of the medians.

    The line goes through medians, because a single stall of the machine would tilt one through all points.
    """
    measured, truth = _measured(table)
    nearest = np.abs(truth[:, None] - np.asarray(delays_ms)).argmin(1)
    groups = [nearest == at for at in range(len(delays_ms))]
    pairs = [(_percentile(measured[group], 0.5), _percentile(truth[group], 0.5)) for group in groups]
    y, x = np.transpose(pairs)
    slope, intercept = np.polyfit(x, y, 1) if np.isfinite(pairs).all() else (nan, nan)
    checks = [_check("known delays: slope", float(slope), 1.0, SLOPE, unit="")]
    checks.append(_shown("known delays: intercept", float(intercept), floor))
    for delay, (p50, true) in zip(delays_ms, pairs, strict=True):
        checks.append(_check(f"known delays: p50 of {delay:g} ms", p50 - floor, true, _limit(true, MEDIAN)))
    return checks


def mixed(table: pa.Table, floor: float) -> list[Check]:
    """A mixed distribution: its percentiles against the true ones; p99.9 has too few requests to be judged."""
    measured, truth = _measured(table)
    checks = []
    for p, limits in ((0.5, MEDIAN), (0.9, MEDIAN), (0.99, TAIL), (0.999, None)):
        name, true = f"mixed delays: p{p * 100:g}", _percentile(truth, p)
        found = _percentile(measured, p) - floor
        checks.append(_shown(name, found, true) if limits is None else _check(name, found, true, _limit(true, limits)))
    return checks


def stall(table: pa.Table, arrivals: NDArray[np.int64], at: float, seconds: float) -> list[Check]:
    """A stall of `seconds` that began `at` seconds after the server's first prediction must show in the p99.

    The truth comes from the schedule, ascending int64 nanoseconds: a request whose intended start lies in the stall
    waits until its end. By the server's own times, a client that sends nothing during the stall would see none.
    """
    begin = pc.min(table["server_received_ns"]).as_py() + at * 1e9
    intended = latency.planned_start(table).min() + arrivals - arrivals[0]
    end = begin + seconds * 1e9
    implied = np.where((intended >= begin) & (intended < end), end - intended, 0.0) / 1e6
    true = _percentile(implied, 0.99)
    return [
        _check("stall: p99", _percentile(latency.from_intended_start(table) / 1e6, 0.99), true, true / 2),
        _shown("stall: uncorrected p99", _percentile(latency.uncorrected(table) / 1e6, 0.99), true),
    ]


def sending(table: pa.Table, window_ns: int = WINDOW_NS) -> list[Check]:
    """The client itself: the send lag, and whether it sent with the dispersion of a Poisson process."""
    rows = latency.after_warmup(table)
    sent = pc.drop_null(rows["sent_ns"]).to_numpy()
    lag = latency.send_lag(rows) / 1e6
    return [
        _shown("send lag: p50", _percentile(lag, 0.5), 0.0),
        _shown("send lag: p99", _percentile(lag, 0.99), 0.0),
        _shown("index of dispersion of the sent requests", index_of_dispersion(sent, window_ns), 1.0, unit=""),
    ]


def answered(tables: Sequence[pa.Table], scheduled: int) -> Check:
    """Every request of the schedules was sent, answered, and has its true delay."""
    found = sum(int(has_truth(table).sum()) for table in tables)
    return _check("requests answered", float(found), float(scheduled), 0.0, unit="")


def of_repetitions(
    repeats: Sequence[Sequence[Check]], suffix: str, judged: Literal["worst", "median"] = "worst"
) -> list[Check]:
    """One check per name over the repetitions: the worst or the median one; of what is only shown, the median.

    Of what must hold exactly, as that every request was answered, it is always the worst.
    """
    found = []
    for same in zip(*repeats, strict=True):
        worst = same[0].ok is not None and (judged == "worst" or same[0].limit == 0)
        ordered = sorted(same, key=_distance if worst else _error)
        chosen = ordered[-1] if worst else ordered[len(ordered) // 2]
        words = f"{suffix}, {'worst' if worst else 'median'} of {len(same)}" if len(same) > 1 else suffix
        found.append(msgspec.structs.replace(chosen, name=f"{chosen.name}{words}"))
    return found


def _measured(table: pa.Table) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Latencies from the intended start and true delays in milliseconds, of the requests answered after the warm-up."""
    rows = latency.after_warmup(table)
    rows = rows.filter(has_truth(rows))
    return latency.from_intended_start(rows) / 1e6, rows["infer_ns"].to_numpy() / 1e6


def has_truth(table: pa.Table) -> NDArray[np.bool_]:
    """Which requests succeeded and have their true delay."""
    known = pc.and_(pc.is_valid(table["infer_ns"]), pc.is_valid(table["server_received_ns"]))
    return succeeded(table) & np.asarray(known.to_numpy(), np.bool_)


def _percentile(values: NDArray[np.float64], p: float) -> float:
    return intervals.percentile(np.sort(values), p) if len(values) else nan


def _limit(truth: float, limits: tuple[float, float]) -> float:
    return max(truth * limits[0], limits[1])


def _check(name: str, measured: float, truth: float, limit: float, unit: str = "ms") -> Check:
    shown = _shown(name, measured, truth, unit)
    return msgspec.structs.replace(shown, limit=_finite(limit), ok=abs(measured - truth) <= limit)


def _shown(name: str, measured: float, truth: float, unit: str = "ms") -> Check:
    return Check(name=name, measured=_finite(measured), truth=_finite(truth), limit=None, unit=unit, ok=None)


def _finite(value: float) -> float | None:
    return float(value) if isfinite(value) else None


def _error(check: Check) -> float:
    """What was measured less the truth, where there is one; infinite for what could not be measured."""
    return inf if check.measured is None else check.measured - (check.truth or 0.0)


def _distance(check: Check) -> float:
    """Distance from the truth in units of the limit; infinite for what could not be measured."""
    if check.measured is None or check.truth is None or check.limit is None:
        return inf
    away = abs(check.measured - check.truth)
    return away / check.limit if check.limit else inf if away else 0.0
