"""What went wrong in a run, in one line: what, since when, how to mend it. Functions of its record."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from loadtest.analysis.intervals import quantiles
from loadtest.results import latency, launch_summary
from loadtest.results.latency import after_warmup, succeeded
from loadtest.results.launch_summary import COMPARED
from medserve.numbers import number
from medserve.tables import LIMITS


def failures(table: pa.Table) -> str | None:
    """How many requests after the warm-up failed or were answered wrongly, and since when; null when none did."""
    rows = latency.by_planned_start(after_warmup(table))
    bad = ~succeeded(rows)
    if not bad.any():
        return None
    start = latency.planned_start(rows) - latency.planned_start(table).min()
    wrong = pc.sum(rows["wrong"]).as_py() or 0
    answered = rows["status"].to_numpy() > 0
    count, total = int(bad.sum()), len(rows)

    def why(row: int) -> str:
        return rows["error"][row].as_py() or "other scores than the expected ones"

    first = int(np.flatnonzero(bad)[0])
    since = f"{number(start[first] / 1e9)} s into the run"
    if wrong == count:
        reason = why(first)
        asked = "; are the expected scores those of this model and of these images?"
        return f"{count:,} of {total:,} answers are wrong, the first {since}: {reason}{asked * (' score' in reason)}"
    if count == total:
        return f"all {total:,} requests failed: {why(first)}"
    silent = _silent_end(bad, answered)
    if 2 * silent >= count:
        first = total - silent
        return (
            f"the server stopped answering {number(start[first] / 1e9)} s into the run: all {silent:,} requests since "
            f"then failed ({why(first)}); its log says why"
        )
    mend = "reduce the rate, or see the server's log"
    return f"{count:,} of {total:,} requests failed, the first {since}: {why(first)}; {mend}"


def lateness(table: pa.Table) -> str | None:
    """Why the generator was late: by over a tenth of a percentile; null where it was not, and for a closed loop."""
    rows = after_warmup(table)
    if not len(rows) or rows["intended_ns"].null_count:
        return None
    intended, service = (
        quantiles(np.sort(values), COMPARED)
        for values in (latency.from_intended_start(rows), latency.service_time(rows))
    )
    for p, ratio in launch_summary.lateness(rows, intended, service, LIMITS).items():
        if ratio > LIMITS.lateness:
            return (
                f"the load generator could not keep its schedule: p{p * 100:g} is "
                f"{number(intended.values[p] / 1e6)} ms from the intended start and "
                f"{number(service.values[p] / 1e6)} ms from sending; give it a core of its own, or more --processes"
            )
    return None


def _silent_end(bad: NDArray[np.bool_], answered: NDArray[np.bool_]) -> int:
    """How many requests at the end had no answer at all."""
    with_answer = np.flatnonzero(answered | ~bad)
    return len(bad) - 1 - int(with_answer[-1]) if with_answer.size else len(bad)
