"""The latency of each request by three definitions, and its breakdown: functions of a record's columns.

From the intended start: what a user waits whose request arrives by schedule. Service time: from sending. Uncorrected:
what a back-to-back client would have measured in the same run; it leaves out the requests that it delays (coordinated
omission; Tene, "How NOT to Measure Latency", 2013). A request that failed or was answered wrongly is infinitely slow.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from loadtest.analysis import steady
from loadtest.analysis.breakdown import UNATTRIBUTED, Term, break_down
from loadtest.analysis.steady import Steady
from loadtest.samples import SERVER_STAGES
from medserve.spec import LoadProfile

LATENCY_COLUMNS = ("intended_ns", "sent_ns", "done_ns", "status", "wrong")
"""The columns that the definitions of latency need."""
COLUMNS = (*LATENCY_COLUMNS, "warmup", "batch")
"""The columns that everything but the breakdown needs."""
BREAKDOWN_COLUMNS = (
    *("intended_ns", "sent_ns", "first_byte_ns", "done_ns", "server_received_ns", "server_sent_ns"),
    *(f"{stage}_ns" for stage in SERVER_STAGES),
    *("status", "wrong", "warmup"),
)
"""The columns that the breakdown needs."""
BLOCK = 1 << 20
"""Rows whose successors are held as Python integers at once: those of ten million rows take a third of a gigabyte."""


def after_warmup(table: pa.Table) -> pa.Table:
    """The rows after the warm-up; without a copy when the warm-up rows are the first ones."""
    warm = table["warmup"].to_numpy()
    count = int(warm.sum())
    return table.slice(count) if warm[:count].all() else table.filter(pc.invert(table["warmup"]))


def succeeded(table: pa.Table) -> NDArray[np.bool_]:
    """Which requests were answered with status 200 and not wrongly."""
    good = pc.and_(pc.equal(table["status"], 200), pc.invert(pc.fill_null(table["wrong"], False)))
    return np.asarray(good.combine_chunks().to_numpy(zero_copy_only=False), np.bool_)


def planned_start(table: pa.Table) -> NDArray[np.int64]:
    """The intended start of each request (ns); without one, its sending; when it was never sent, its end."""
    known = pc.coalesce(table["intended_ns"], table["sent_ns"], table["done_ns"])
    return np.asarray(known.to_numpy(), np.int64)


def by_planned_start(table: pa.Table) -> pa.Table:
    """The rows in ascending order of their planned start; the same table when they are in that order."""
    planned = planned_start(table)
    if np.all(planned[:-1] <= planned[1:]):
        return table
    return table.take(np.argsort(planned, kind="stable"))


def duration_seconds(table: pa.Table, at_least: float = 0.0) -> float:
    """Seconds from the first planned start of these rows to their last answer; at least `at_least`."""
    if not len(table):
        return at_least
    first: int = pc.min(pc.coalesce(table["intended_ns"], table["sent_ns"], table["done_ns"])).as_py()
    last: int = pc.max(table["done_ns"]).as_py()
    return max(at_least, (last - first) / 1e9)


def answered_rate(table: pa.Table) -> float:
    """Right answers per second after the warm-up; 0 where there are none."""
    rows = after_warmup(table)
    seconds = duration_seconds(rows)
    return int(succeeded(rows).sum()) / seconds if seconds else 0.0


def busy_ns(table: pa.Table, stages: Sequence[str]) -> float | None:
    """What the server's own stages took of it per right answer, their mean (ns); null where it does not say."""
    good = pa.array(succeeded(table))
    total = 0.0
    for stage in stages:
        values = table[f"{stage}_ns"].filter(good)
        if not len(values) or values.null_count:
            return None
        total += pc.mean(values).as_py()
    return total


def from_intended_start(table: pa.Table) -> NDArray[np.float64]:
    """From the intended start, or from sending where there is none (a closed loop), to the whole answer."""
    return _latency(table, pc.coalesce(table["intended_ns"], table["sent_ns"]))


def service_time(table: pa.Table) -> NDArray[np.float64]:
    """From sending to the whole answer: without the time that a request waited in the client."""
    return _latency(table, table["sent_ns"])


def send_lag(table: pa.Table) -> NDArray[np.float64]:
    """The time from the intended start to sending, of the requests that were sent."""
    late = pc.drop_null(pc.subtract(table["sent_ns"], table["intended_ns"]))
    return np.asarray(late.to_numpy(), np.float64)


def uncorrected(table: pa.Table) -> NDArray[np.float64]:
    """The service times that one back-to-back client would have recorded in the same run; fewer values than rows.

    It takes a request, waits for the answer, leaves out the requests that were planned before that answer, and takes
    the next one. So a stall that delays a thousand requests is one value.
    """
    table = by_planned_start(table)
    return service_time(table)[_back_to_back(planned_start(table), table["done_ns"].to_numpy())]


def level(rows: pa.Table, profile: LoadProfile | None) -> NDArray[np.float64]:
    """What tells whether a record is steady (ns): its latencies.

    At a share of the capacity it is the server's own predictions, where the server tells them: a queue comes and goes
    in a steady state too, and is the longer, the nearer the load is to the capacity.
    """
    if profile is None or profile.load is None or "infer_ns" not in rows.column_names:
        return from_intended_start(rows)
    good = succeeded(rows)
    if rows["infer_ns"].filter(pa.array(good)).null_count:
        return from_intended_start(rows)
    return np.where(good, np.asarray(pc.fill_null(rows["infer_ns"], 0).to_numpy(), np.float64), np.inf)


def mark_warmup(table: pa.Table, profile: LoadProfile | None = None) -> tuple[pa.Table, Steady]:
    """Mark as warm-up also the rows before the steady state that change points find; returns what was found.

    `table` has the columns of samples.SCHEMA; `Steady.start` counts the rows after the configured warm-up, in order of
    planned start.
    """
    rest = by_planned_start(after_warmup(table.select((*LATENCY_COLUMNS, "infer_ns", "warmup"))))
    planned = planned_start(rest)
    found = steady.find(level(rest, profile), planned)
    if found.start:
        warm = pc.or_(table["warmup"], pa.array(planned_start(table) < planned[found.start]))
        table = table.set_column(table.column_names.index("warmup"), "warmup", warm)
    return table, found


def breakdown(table: pa.Table) -> tuple[Term, ...]:
    """The latency breakdown of the requests after the warm-up that succeeded; empty when none did.

    With the server's stamps (same host) request path and return path are separate terms; with its stages alone the
    network is one term, which takes what the stages leave; with neither there is what the client knows.
    """
    good = pa.array(succeeded(table) & ~table["warmup"].to_numpy())
    if not pc.any(good).as_py():
        return ()

    def known(*names: str) -> bool:
        return not any(table[name].filter(good).null_count for name in names)

    def between(early: str, late: str) -> NDArray[np.int64]:
        return np.asarray(pc.subtract(table[late], table[early]).filter(good).to_numpy())

    scheduled = known("intended_ns")
    answered = "first_byte_ns" if known("first_byte_ns") else "done_ns"
    stages = [stage for stage in SERVER_STAGES if known(f"{stage}_ns")]
    stamped = known("server_received_ns", "server_sent_ns")

    def parts() -> Iterator[tuple[str, NDArray[np.int64]]]:
        # One column after another: of ten million rows each takes 80 MB.
        if scheduled:
            yield "client queue", between("intended_ns", "sent_ns")
        if stamped:
            yield "request path", between("sent_ns", "server_received_ns")
        for stage in stages:
            yield stage, table[f"{stage}_ns"].filter(good).to_numpy()
        if stamped:
            yield "return path", between("server_sent_ns", answered)
            if answered != "done_ns":
                yield "reading", between(answered, "done_ns")

    total = between("intended_ns" if scheduled else "sent_ns", "done_ns")
    if stamped:
        return break_down(total, parts(), UNATTRIBUTED)
    return break_down(total, parts(), "network" if stages else "sending to answer", position=int(scheduled))


DEFINITIONS: dict[str, Callable[[pa.Table], NDArray[np.float64]]] = {
    "service": service_time,
    "uncorrected": uncorrected,
    "lag": send_lag,
}
"""What is given beside the latency from the intended start, of an open loop only."""


def percentile_name(name: str, definition: str) -> tuple[str, float]:
    """The key of a percentile by one of DEFINITIONS, such as p50_service_ms, and what its milliseconds are times."""
    return (f"lag_{name}_us", 1000.0) if definition == "lag" else (f"{name}_{definition}_ms", 1.0)


def _back_to_back(planned: NDArray[np.int64], done: NDArray[np.int64]) -> NDArray[np.bool_]:
    """The requests that are reached by going from each to the first one planned at or after its answer."""
    taken = bytearray(len(planned))
    place = 0
    for first in range(0, len(planned), BLOCK):
        stop = min(first + BLOCK, len(planned))
        after = np.searchsorted(planned, done[first:stop])
        following = np.maximum(after, np.arange(first + 1, stop + 1)).tolist()
        while place < stop:
            taken[place] = 1
            place = following[place - first]
    return np.frombuffer(taken, np.bool_)


def _latency(table: pa.Table, start: pa.ChunkedArray) -> NDArray[np.float64]:
    # Subtracted as integers: a float cannot hold a clock of months in nanoseconds.
    elapsed = pc.subtract(table["done_ns"], start).to_numpy()
    values = np.array(elapsed, np.float64)
    values[~succeeded(table)] = np.inf
    return values
