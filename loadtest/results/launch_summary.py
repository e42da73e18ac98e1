"""One launch of a cell, reduced to what rows are made of: ten million requests become a few numbers."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct
from numpy.typing import NDArray

from loadtest import samples
from loadtest.analysis import bimodality, distribution, intervals, steady
from loadtest.analysis.bimodality import Modes
from loadtest.analysis.breakdown import Term
from loadtest.analysis.distribution import Curve
from loadtest.analysis.intervals import Quantiles
from loadtest.analysis.steady import Steady
from loadtest.analysis.within_launch import CacheAudit, audit
from loadtest.results import latency
from medserve import store
from medserve.errors import BadInput
from medserve.result import Result
from medserve.spec import LoadProfile
from medserve.tables import Limits

SHARES = (0.5, 0.9, 0.99)
COMPARED = (0.5, 0.99)
"""Percentiles at which the definitions of latency are compared."""


class LaunchSummary(Struct, frozen=True, kw_only=True):
    """One launch: its manifest, and what its record was reduced to. `beside` has latency.DEFINITIONS of an open loop.

    `count` and `mean_ns`, from the intended start, are of what was measured; `requests` also counts the warm-up and the
    audit. `busy_ns` is the server's own time per right answer, where load is told as a share of its capacity;
    `unfinished` are the requests of an open loop without a right answer when its last one is due, `in_time` those
    answered rightly within the deadline. `lateness` is a percentile from the intended start over that of the service
    time, of the requests that found a free connection.
    """

    count: int
    mean_ns: float
    requests: int
    failed: int
    wrong: int
    images: int
    seconds: float
    intended: Quantiles
    curve: Curve
    breakdown: tuple[Term, ...]
    beside: dict[str, Quantiles]
    lateness: dict[float, float]
    steady: Steady
    modes: Modes | None
    audit: CacheAudit | None
    result: Result
    busy_ns: float | None = None
    unfinished: int = 0
    in_time: int = 0


def summarise(
    folder: Path, result: Result, *, with_breakdown: bool = False, deadline_ms: float | None = None
) -> LaunchSummary:
    """The launch whose record lies in `folder`. Raises BadInput when the record is not the one that `result` names."""
    stages = tuple(f"{stage}_ns" for stage in _occupying(result))
    wanted = dict.fromkeys((*latency.COLUMNS, *stages, *(latency.BREAKDOWN_COLUMNS if with_breakdown else ())))
    record = samples.read(_named(folder, result, "samples.parquet"), wanted)
    terms = latency.breakdown(record) if with_breakdown else ()
    busy = latency.busy_ns(latency.after_warmup(record), _occupying(result)) if stages else None
    predicted = ("infer_ns",) if "infer_ns" in stages and result.cell.profile.load is not None else ()
    record = record.select((*latency.COLUMNS, *predicted))  # frees the memory of the others
    table = latency.by_planned_start(latency.after_warmup(record))
    seconds, requests = _seconds(record, table, result.cell.profile), len(record)
    del record
    good = latency.succeeded(table)
    latencies = latency.from_intended_start(table)
    # In order of time, before the quantiles sort it.
    steadiness = steady.find(latency.level(table, result.cell.profile), latency.planned_start(table), result.limits)
    modes = bimodality.detect(latencies)
    is_open = result.cell.profile.mode == "open-loop"
    cache_audit = _audit(folder, result)
    intended = _quantiles(latencies)
    beside = {name: _quantiles(of(table)) for name, of in latency.DEFINITIONS.items()} if is_open else {}
    return LaunchSummary(
        count=len(table),
        mean_ns=float(latencies.mean()) if len(latencies) else float("nan"),
        requests=requests + (2 * cache_audit.pairs if cache_audit else 0),
        failed=int((~good).sum()),
        wrong=pc.sum(table["wrong"]).as_py() or 0,
        images=pc.sum(table["batch"].filter(pa.array(good))).as_py() or 0,
        seconds=seconds,
        intended=intended,
        curve=distribution.curve(latencies),
        breakdown=terms,
        beside=beside,
        lateness=lateness(table, intended, beside["service"], result.limits) if beside else {},
        steady=steadiness,
        modes=modes,
        audit=cache_audit,
        result=result,
        busy_ns=busy,
        unfinished=_unfinished(table, result.limits) if is_open else 0,
        in_time=0 if deadline_ms is None else int((latencies <= deadline_ms * 1e6).sum()),
    )


def _occupying(result: Result) -> tuple[str, ...]:
    """The stages of which a server has one at a time, where load is told as a share of its capacity; else none.

    Behind a queue it decodes and encodes while it predicts. Of a batch that it puts together each request has the whole
    time, and predictions that overlap, as those of several instances, have no share of a server.
    """
    profile, deployment = result.cell.profile, result.cell.deployment
    if deployment.batch_images > 1 or deployment.instances > 1 or (profile.load is None and profile.users == 1):
        return ()
    return {"inline": ("decode", "infer", "encode"), "thread": ("infer",), "concurrent": ()}[deployment.dispatch]


def _unfinished(table: pa.Table, limits: Limits) -> int:
    """The requests of an open loop that the server has not answered rightly when the last one is due.

    What the client had not sent by then is not the server's, unless the server held all connections.
    """
    planned = latency.planned_start(table)
    if not len(planned):
        return 0
    sent = np.asarray(pc.fill_null(table["sent_ns"], np.iinfo(np.int64).max).to_numpy()) <= planned[-1]
    waiting = table["done_ns"].to_numpy() > planned[-1]
    held = int((waiting & sent).sum()) >= limits.busy * limits.connections
    return int(((waiting & (sent | held)) | ~latency.succeeded(table)).sum())


def lateness(table: pa.Table, intended: Quantiles, service: Quantiles, limits: Limits) -> dict[float, float]:
    """Percentiles from the intended start over those of the service time, of requests that found a free connection."""
    found = _ratios(intended, service)
    if max(found.values(), default=1.0) <= limits.lateness:
        return found
    planned = latency.planned_start(table)
    sent = table.filter(pc.is_valid(table["sent_ns"]))
    in_flight = np.searchsorted(np.sort(sent["sent_ns"].to_numpy()), planned, "right")
    in_flight -= np.searchsorted(np.sort(sent["done_ns"].to_numpy()), planned, "right")
    free = table.filter(pa.array(in_flight < limits.busy * limits.connections))
    return _ratios(_quantiles(latency.from_intended_start(free)), _quantiles(latency.service_time(free)))


def _seconds(record: pa.Table, table: pa.Table, profile: LoadProfile) -> float:
    """Seconds that rates are over. A schedule's last gap belongs to it, though no request ends it."""
    if profile.mode != "open-loop" or not len(table):
        return latency.duration_seconds(table)
    begun, first = (pc.min(pc.coalesce(rows["intended_ns"], rows["sent_ns"])).as_py() for rows in (record, table))
    # Warm-up that was found beyond the configured one is not part of the measurement.
    cut = max(0.0, (first - begun) / 1e9 - profile.warmup_seconds)
    return latency.duration_seconds(table, profile.scheduled_seconds - cut)


def _named(folder: Path, result: Result, name: str) -> Path:
    if name not in result.files:
        raise BadInput(f"{folder / 'result.json'}: it names no {name}; measure the cell again")
    store.check_digests(folder, {name: result.files[name]})
    return folder / name


def _quantiles(values: NDArray[np.float64]) -> Quantiles:
    values.sort()
    return intervals.quantiles(values, SHARES)


def _ratios(intended: Quantiles, service: Quantiles) -> dict[float, float]:
    return {
        p: intended.values[p] / max(service.values[p], 1.0)
        for p in COMPARED
        if intended.count >= intervals.least_samples(p) and np.isfinite(intended.values[p])
    }


def _audit(folder: Path, result: Result) -> CacheAudit | None:
    if "audit.parquet" not in result.files:
        return None
    record = samples.read(_named(folder, result, "audit.parquet"), latency.LATENCY_COLUMNS)
    try:
        return audit(latency.service_time(record), result.limits)
    except BadInput:
        return None  # too few pairs were answered to tell
