"""What went wrong in a run, in one line: what, when, how to mend it. Pure functions of the record."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from loadtest.analysis.intervals import quantiles
from loadtest.results import latency, launches
from loadtest.results.latency import after_warmup, succeeded
from loadtest.results.launches import COMPARED


def failures(table: pa.Table) -> str | None:
    """Which requests after the warm-up failed or were answered wrongly, and since when; null when none was."""
    rows = latency.by_planned_start(after_warmup(table))
    bad = ~succeeded(rows)
    if not bad.any():
        return None
    planned = latency.planned_start(rows) - latency.planned_start(table).min()
    wrong = pc.sum(rows["wrong"]).as_py() or 0
    answered = rows["status"].to_numpy() > 0
    count, total = int(bad.sum()), len(rows)

    def why(place: int) -> str:
        return rows["error"][place].as_py() or "other scores than the expected ones"

    first = int(np.flatnonzero(bad)[0])
    since = f"{planned[first] / 1e9:.3g} s into the run"
    if wrong == count:
        return (
            f"{count:,} of {total:,} answers are wrong, the first {since}: {why(first)}; "
            "is it the model, and are these the images, that the scores are of?"
        )
    if count == total:
        return f"all {total:,} requests failed: {why(first)}"
    silent = _silent_end(bad, answered)
    if 2 * silent >= count:
        first = total - silent
        return (
            f"the server stopped answering {planned[first] / 1e9:.3g} s into the run: all {silent:,} requests since "
            f"then failed ({why(first)}); its log says why"
        )
    return f"{count:,} of {total:,} requests failed, the first {since}: {why(first)}; ask for less, or see its log"


def lateness(table: pa.Table) -> str | None:
    """Where the generator's own lateness is a tenth of a percentile; null where it is not, and for a closed loop."""
    rows = after_warmup(table)
    if not len(rows) or rows["intended_ns"].null_count:
        return None
    intended, sent = (
        quantiles(np.sort(values), COMPARED)
        for values in (latency.from_intended_start(rows), latency.service_time(rows))
    )
    for p, ratio in launches.lateness(rows, intended, sent).items():
        if ratio > launches.LATE:
            return (
                f"the load generator could not keep its schedule: p{p * 100:g} is {intended.values[p] / 1e6:.4g} ms "
                f"from the intended time and {sent.values[p] / 1e6:.4g} ms from the sending; give it a core of its "
                "own, or more --processes"
            )
    return None


def _silent_end(bad: NDArray[np.bool_], answered: NDArray[np.bool_]) -> int:
    """How many requests at the end had no answer at all, with no good one among them."""
    spoken = np.flatnonzero(answered | ~bad)
    return len(bad) - 1 - int(spoken[-1]) if spoken.size else len(bad)
