"""One launch of a cell, reduced to what rows are made of: ten million requests become a few numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct
from numpy.typing import NDArray

from loadtest import samples
from loadtest.analysis import audit, bimodality, distribution, intervals, steady
from loadtest.analysis.audit import CacheAudit
from loadtest.analysis.bimodality import Modes
from loadtest.analysis.breakdown import Term
from loadtest.analysis.distribution import Curve
from loadtest.analysis.intervals import Quantiles
from loadtest.analysis.steady import Steady
from loadtest.generator.payload import CONNECTIONS
from loadtest.results import latency
from medserve import store
from medserve.errors import BadInput
from medserve.result import Result, Window
from medserve.spec import LoadProfile

SHARES = (0.5, 0.9, 0.99)
COMPARED = (0.5, 0.99)
"""Percentiles at which the rulers are held against one another."""
LATE = 1.1
"""Ratio of a percentile from the intended time to that from the sending, above which the client was the slow one."""
NEARLY = 0.9
"""Share of the connections in use from which all may be: one that an answer frees is in use again at once."""


class Counted(Struct, frozen=True, kw_only=True):
    """One launch. `sent`, `closed` and `lag` (ns after the schedule) of an open loop only.

    `count` is of what was measured, as is `mean_ns`, from the intended time; `requests` of all: the warm-up and the
    audit too. `late` is the percentile from the intended time over that from the sending, of what found a free
    connection.
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
    ledger: tuple[Term, ...]
    sent: Quantiles | None
    closed: Quantiles | None
    lag: Quantiles | None
    late: dict[float, float]
    steady: Steady
    modes: Modes | None
    windows: tuple[Window, ...]
    repeats: CacheAudit | None
    process: dict[str, Any]


def count(folder: Path, result: Result, *, parts: bool = False) -> Counted:
    """The launch whose record lies in `folder`; with `parts`, also where the time of its requests went.

    Raises BadInput when the record is not the one that the result names.
    """
    wanted = dict.fromkeys((*latency.COLUMNS, *(latency.BREAKDOWN_COLUMNS if parts else ())))
    record = samples.read(_named(folder, result, "samples.parquet"), wanted)
    terms = latency.breakdown(record) if parts else ()
    record = record.select(latency.COLUMNS)  # the others' memory goes
    table = latency.by_planned_start(latency.after_warmup(record))
    seconds, requests = _seconds(record, table, result.cell.profile), len(record)
    del record
    good = latency.succeeded(table)
    waited = latency.from_intended_start(table)
    found, two = steady.find(waited, latency.planned_start(table)), bimodality.two(waited)
    is_open = result.cell.profile.mode == "open-loop"
    repeats = _repeats(folder, result)
    intended = _quantiles(waited)
    sent = _quantiles(latency.service_time(table)) if is_open else None
    return Counted(
        count=len(table),
        mean_ns=float(waited.mean()) if len(waited) else float("nan"),
        requests=requests + (2 * repeats.pairs if repeats else 0),
        failed=int((~good).sum()),
        wrong=pc.sum(table["wrong"]).as_py() or 0,
        images=pc.sum(table["batch"].filter(pa.array(good))).as_py() or 0,
        seconds=seconds,
        intended=intended,
        curve=distribution.curve(waited),
        ledger=terms,
        sent=sent,
        closed=_quantiles(latency.uncorrected(table)) if is_open else None,
        lag=_quantiles(latency.send_lag(table)) if is_open else None,
        late={} if sent is None else lateness(table, intended, sent),
        steady=found,
        modes=two,
        windows=result.windows,
        repeats=repeats,
        process=result.process,
    )


def _seconds(record: pa.Table, table: pa.Table, profile: LoadProfile) -> float:
    """Seconds that rates are over. A schedule's last gap belongs to it, though no request ends it."""
    if profile.mode != "open-loop" or not len(table):
        return latency.duration_seconds(table)
    begun, first = (pc.min(pc.coalesce(rows["intended_ns"], rows["sent_ns"])).as_py() for rows in (record, table))
    # What was found to be warm-up beyond the assumed one is no part of the measurement.
    cut = max(0.0, (first - begun) / 1e9 - profile.warmup_seconds)
    return latency.duration_seconds(table, profile.seconds - cut)


def _named(folder: Path, result: Result, name: str) -> Path:
    if name not in result.files:
        raise BadInput(f"{folder / 'result.json'}: it names no {name}; measure the cell again")
    store.check_digests(folder, {name: result.files[name]})
    return folder / name


def _quantiles(values: NDArray[np.float64]) -> Quantiles:
    values.sort()
    return intervals.quantiles(values, SHARES)


def lateness(table: pa.Table, intended: Quantiles, sent: Quantiles) -> dict[float, float]:
    """Percentiles from the intended time over those from the sending, of what found a free connection."""
    found = _ratios(intended, sent)
    if max(found.values(), default=1.0) <= LATE:
        return found
    planned = latency.planned_start(table)
    left = table.filter(pc.is_valid(table["sent_ns"]))
    in_flight = np.searchsorted(np.sort(left["sent_ns"].to_numpy()), planned, "right")
    in_flight -= np.searchsorted(np.sort(left["done_ns"].to_numpy()), planned, "right")
    free = table.filter(pa.array(in_flight < NEARLY * CONNECTIONS))
    return _ratios(_quantiles(latency.from_intended_start(free)), _quantiles(latency.service_time(free)))


def _ratios(intended: Quantiles, sent: Quantiles) -> dict[float, float]:
    return {
        p: intended.values[p] / max(sent.values[p], 1.0)
        for p in COMPARED
        if intended.count >= intervals.least_samples(p) and np.isfinite(intended.values[p])
    }


def _repeats(folder: Path, result: Result) -> CacheAudit | None:
    if "audit.parquet" not in result.files:
        return None
    record = samples.read(_named(folder, result, "audit.parquet"), latency.LATENCY_COLUMNS)
    try:
        return audit.audit(latency.service_time(record))
    except BadInput:
        return None  # too few pairs were answered to tell
