"""Known-answer tests of the load generator: functions of records to the checks of a self-test.

The truth is the delay of each request, the `infer` stage that the server reports. What is added to it, which is the way
there and back and the wake-ups of both cores, is measured twice on the same server with the same schedule: by the
generator, and before and after it by a plain client (`reference_client`). The generator may add no more than that one
does. A check fails only where the 95 % interval lies beyond the limit.
"""

from collections.abc import Sequence
from math import hypot, inf, isfinite, nan
from typing import Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from loadtest.analysis import intervals, within_launch
from loadtest.analysis.intervals import Interval
from loadtest.results import latency
from loadtest.results.latency import succeeded
from medserve.result import Check

MEDIAN = 0.02, 0.15
"""The limit for a median or p90: the larger of this share of the truth and this many milliseconds."""
TAIL = 0.05, 3.0
"""The same for a p99."""

Floats = NDArray[np.float64]


def known(table: pa.Table, reference: pa.Table, delays_ms: Sequence[float]) -> list[Check]:
    """Known delays: the median of each, less what the reference client adds to it."""
    (measured, truth), (theirs, their_truth) = _measured(table), _measured(reference)
    nearest, their_nearest = (
        np.abs(values[:, None] - np.asarray(delays_ms)).argmin(1) for values in (truth, their_truth)
    )
    checks = []
    for at, delay in enumerate(delays_ms):
        group, other = nearest == at, their_nearest == at
        added = _difference(measured[group] - truth[group], theirs[other] - their_truth[other], 0.5)
        true = _percentile(truth[group], 0.5)
        checks.append(_judged(f"known delays: p50 of {delay:g} ms", added, true, _limit(true, MEDIAN)))
    return checks


def mixed(table: pa.Table, reference: pa.Table) -> list[Check]:
    """A mixed distribution: its percentiles, less what the reference client adds to them.

    p99.9 has too few requests to be judged.
    """
    (measured, truth), (theirs, their_truth) = _measured(table), _measured(reference)
    checks = []
    for p, limits in ((0.5, MEDIAN), (0.9, MEDIAN), (0.99, TAIL), (0.999, None)):
        name, true = f"mixed delays: p{p * 100:g}", _percentile(truth, p)
        floor = _percentile(theirs, p) - _percentile(their_truth, p)
        if limits is None:
            checks.append(_shown(name, _percentile(measured, p) - floor, true))
        else:
            added = _difference(measured, theirs, p, -true + _percentile(their_truth, p))
            checks.append(_judged(name, added, true, _limit(true, limits)))
    return checks


def schedule(table: pa.Table, reference: pa.Table, arrivals: NDArray[np.int64]) -> list[Check]:
    """Whether requests were planned when the schedule, ascending int64 nanoseconds, says; and arrived at the server.

    By the server's clock they may arrive after their intended start as much as after sending by the reference client.
    """
    planned = np.sort(latency.planned_start(table))
    start = planned[0] - arrivals[0] if len(planned) else 0
    off = len(np.setxor1d(planned - start, arrivals)) + abs(len(planned) - len(arrivals))
    ours, theirs = (
        np.asarray(pc.drop_null(pc.subtract(rows["server_received_ns"], rows[since])).to_numpy(), np.float64) / 1e6
        for rows, since in ((latency.after_warmup(table), "intended_ns"), (latency.after_warmup(reference), "sent_ns"))
    )
    return [
        _check("requests not planned by the schedule", float(off), 0.0, 0.0, unit=""),
        _judged("arrival after the intended start: p50", _difference(ours, theirs, 0.5), 0.0, MEDIAN[1]),
    ]


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
        _check("stall: p99", _percentile(latency.from_intended_start(table) / 1e6, 0.99), true, _limit(true, TAIL)),
        _shown("stall: uncorrected p99", _percentile(latency.uncorrected(table) / 1e6, 0.99), true),
    ]


def sending(table: pa.Table) -> list[Check]:
    """How late the client sent by its own clock."""
    lag = latency.send_lag(latency.after_warmup(table)) / 1e6
    return [
        _shown("send lag: p50", _percentile(lag, 0.5), 0.0),
        _shown("send lag: p99", _percentile(lag, 0.99), 0.0),
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
        ordered = sorted(same, key=_badness if worst else _error)
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


def _difference(ours: Floats, theirs: Floats, p: float, plus: float = 0.0) -> Interval:
    """The percentile `p` of the first (ms) less that of the second, with an interval; independent samples."""
    if not len(ours) or not len(theirs):
        return Interval(reason="no request")
    value = _percentile(ours, p) - _percentile(theirs, p) + plus
    one, other = (within_launch.percentile_interval(v * 1e6, np.sort(v) * 1e6, p) for v in (ours, theirs))
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return Interval(value=_finite(value), reason=one.reason or other.reason)
    below = hypot(one.known - one.low, other.high - other.known)
    above = hypot(one.high - one.known, other.known - other.low)
    return Interval(value=value, low=value - below, high=value + above)


def _limit(truth: float, limits: tuple[float, float]) -> float:
    return max(truth * limits[0], limits[1])


def _check(name: str, measured: float, truth: float, limit: float, unit: str = "ms") -> Check:
    shown = _shown(name, measured, truth, unit)
    return msgspec.structs.replace(shown, limit=_finite(limit), ok=abs(measured - truth) <= limit)


def _judged(name: str, added: Interval, truth: float, limit: float) -> Check:
    """A check of the truth with what the generator adds to it, which fails where its interval lies beyond the limit."""
    if added.value is None:
        return _check(name, nan, truth, limit)
    low, high = (added.value if end is None else end for end in (added.low, added.high))
    return msgspec.structs.replace(
        _check(name, truth + added.value, truth, limit),
        low=None if added.low is None else truth + added.low,
        high=None if added.high is None else truth + added.high,
        ok=low <= limit and high >= -limit,
    )


def _shown(name: str, measured: float, truth: float, unit: str = "ms") -> Check:
    return Check(name=name, measured=_finite(measured), truth=_finite(truth), limit=None, unit=unit, ok=None)


def _finite(value: float) -> float | None:
    return float(value) if isfinite(value) else None


def _error(check: Check) -> float:
    """What was measured less the truth, where there is one; infinite for what could not be measured."""
    return inf if check.measured is None else check.measured - (check.truth or 0.0)


def _badness(check: Check) -> tuple[bool, float]:
    """Whether it failed, and the distance from the truth in units of the limit; infinite for what is not measured."""
    if check.measured is None or check.truth is None or check.limit is None:
        return True, inf
    away = abs(check.measured - check.truth)
    return check.ok is False, away / check.limit if check.limit else inf if away else 0.0
