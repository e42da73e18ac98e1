"""What one record says, for a person at the terminal: counts, rates, percentiles."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loadtest.analysis import intervals
from loadtest.samples import is_good

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999}


def summarise(table: pa.Table, seconds: float = 0.0) -> dict[str, Any]:
    """Figures of the rows after the warm-up; percentiles in milliseconds, null where they are not estimable.

    Rates are over at least `seconds`, the length of the schedule of an open loop. `sent_p99_ms` is measured from the
    sending: it differs from `p99_ms` by what the schedule had to wait.
    """
    table = intervals.measured(table)
    good = is_good(table)
    ordered = np.sort(intervals.latencies(table))
    took = intervals.seconds(table, seconds)
    errors = [error for error in table["error"].unique().to_pylist() if error]
    said: dict[str, Any] = {
        "n": len(table),
        "failed": int((~good).sum()),
        "wrong": pc.sum(table["wrong"]).as_py() or 0,
        "error": errors[0] if errors else None,
        "seconds": took,
        "rate_delivered": int(good.sum()) / took if took else None,
        "throughput": (pc.sum(table.filter(good)["batch"]).as_py() or 0) / took if took else None,
    }
    for name, p in PERCENTILES.items():
        said[f"{name}_ms"] = intervals.estimate([ordered], p).value
    if not table["intended_ns"].null_count and len(table):
        sent = np.sort(intervals.latencies(table.set_column(0, "intended_ns", table["sent_ns"])))
        said["sent_p99_ms"] = intervals.estimate([sent], 0.99).value
    return said


def stages(columns: dict[str, Any]) -> dict[str, float]:
    """Median milliseconds of each stage of a staged pass, warm-up aside."""
    kept = ~columns["warmup"]
    return {
        name.removesuffix("_ns"): float(np.median(columns[name][kept])) / 1e6 for name in columns if name != "warmup"
    }


def in_words(said: dict[str, Any]) -> str:
    """The figures of `summarise` in a few calm lines."""
    lines = [f"requests     {said['n']:,} in {said['seconds']:.3g} s"]
    if said["rate_delivered"] is not None:
        asked = f" of {said['rate_asked']:g} asked" if said.get("rate_asked") else ""
        lines[0] += f": {said['rate_delivered']:,.4g}/s{asked}, {said['throughput']:,.4g} images/s"
    if said["failed"]:
        lines.append(f"failed       {said['failed']:,} ({said['wrong']:,} wrong): {said['error'] or 'other scores'}")
    for name in PERCENTILES:
        value = said[f"{name}_ms"]
        text = f"{value:.4g} ms" if value is not None else "not estimable"
        lines.append(f"{name.replace('_', '.'):<12} {text}")
    if said.get("sent_p99_ms") is not None:
        lines.append(f"p99 as sent  {said['sent_p99_ms']:.4g} ms (without what the schedule had to wait)")
    lines += [f"{name:<12} {value:.4g} ms (median)" for name, value in said.get("stages_ms", {}).items()]
    return "\n".join(lines)
