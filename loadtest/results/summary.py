"""What one record says, for a person at the terminal: counts, rates, three rulers, and where the time went."""

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from loadtest.analysis import intervals, steady, within_launch
from loadtest.results import latency
from loadtest.results.latency import succeeded

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999}
RULERS: dict[str, Callable[[pa.Table], NDArray[np.float64]]] = {
    "sent_ms": latency.service_time,
    "closed_ms": latency.uncorrected,
}
"""Beside the headline; of an open loop only."""


def summarise(table: pa.Table, seconds: float = 0.0) -> dict[str, Any]:
    """Figures of the rows after the warm-up; percentiles in milliseconds, null where they are not estimable.

    Each headline percentile has the ends of the 95 % interval that this one record carries (see `within`). Rates are
    over at least `seconds`, the length of the schedule of an open loop. Of an open loop there are also `*_sent_ms`,
    `*_closed_ms` (see `rulers`) and the lag of the sendings behind the schedule; where the server said what it spent,
    the `ledger`. `steady` is null where too few requests tell.
    """
    table = latency.after_warmup(table)
    errors = [error for error in table["error"].unique().to_pylist() if error]
    plain = latency.by_planned_start(table.select(latency.COLUMNS))
    good = succeeded(plain)
    took = latency.duration_seconds(plain, seconds)
    waited = latency.from_intended_start(plain)
    settled = steady.find(waited, latency.planned_start(plain))
    said: dict[str, Any] = {
        "n": len(plain),
        "failed": int((~good).sum()),
        "wrong": pc.sum(plain["wrong"]).as_py() or 0,
        "error": errors[0] if errors else None,
        "seconds": took,
        "rate_delivered": int(good.sum()) / took if took else None,
        "throughput": (pc.sum(plain["batch"].filter(pa.array(good))).as_py() or 0) / took if took else None,
        "steady": None if settled.steady and settled.reason else settled.steady,
        "steady_reason": settled.reason,
    }
    said |= _headline(waited)
    del waited  # of ten million rows 80 MB, as each further ruler takes
    if not plain["intended_ns"].null_count and len(plain):
        for name, ruler in RULERS.items():
            said |= _percentiles(ruler(plain), name)
        lag = latency.send_lag(plain)
        lag.sort()
        for name in ("p50", "p99"):
            value = intervals.estimate([lag], PERCENTILES[name]).value
            said[f"lag_{name}_us"] = None if value is None else value * 1000
        del lag
    if table["infer_ns"].null_count < len(table):
        said["ledger"] = [msgspec.to_builtins(term) for term in latency.breakdown(table)]
    return said


def _headline(waited: NDArray[np.float64]) -> dict[str, float | None]:
    """Percentiles with the intervals that this one record carries."""
    ordered = np.sort(waited)
    said: dict[str, float | None] = {}
    for name, p in PERCENTILES.items():
        found = within_launch.percentile_interval(waited, ordered, p)
        said |= {f"{name}_ms": found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    return said


def _percentiles(values: NDArray[np.float64], unit: str) -> dict[str, float | None]:
    values.sort()
    return {f"{name}_{unit}": intervals.estimate([values], p).value for name, p in PERCENTILES.items()}


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
    if cut := said.get("warmup_found_seconds"):
        lines.append(f"warm-up      {cut:.3g} s more than asked, found at another level: left out of these figures")
    if said["steady_reason"]:
        lines.append(f"steady       {said['steady_reason']}")
    if said.get("lag_p50_us") is not None:
        tail = "" if said["lag_p99_us"] is None else f", p99 {said['lag_p99_us']:.3g} us"
        lines.append(f"send lag     p50 {said['lag_p50_us']:.3g} us{tail} behind the schedule")
    lines += ["", *_rulers(said)] if "p50_sent_ms" in said else _plain(said)
    lines += [f"{name:<12} {value:.4g} ms (median)" for name, value in said.get("stages_ms", {}).items()]
    if terms := said.get("ledger"):
        lines += ["", f"{'where the time went':<20} {'p50 ms':>10} {'p99 ms':>10} {'mean share':>11}"]
        lines += [
            f"{term['name']:<20} {_value(term['p50_ms']):>10} {_value(term['p99_ms']):>10} {term['share']:>11.1%}"
            for term in terms
        ]
    return "\n".join(lines)


def _plain(said: dict[str, Any]) -> list[str]:
    return [f"{name.replace('_', '.'):<12} {_with_interval(said, name)}" for name in PERCENTILES]


def _with_interval(said: dict[str, Any], name: str) -> str:
    if said[f"{name}_ms"] is None:
        return "not estimable"
    return f"{said[f'{name}_ms']:.4g} ms ({_value(said[f'{name}_low'])} to {_value(said[f'{name}_high'])})"


def _rulers(said: dict[str, Any]) -> list[str]:
    """The three rulers side by side, and by how much a closed loop would have flattered."""
    heads = ("from intended", "from sending", "as closed loop", "hidden by it")
    lines = [f"{'latency, ms':<12} " + " ".join(f"{head:>14}" for head in heads)]
    for name in PERCENTILES:
        values = [said[f"{name}_{of}"] for of in ("ms", "sent_ms", "closed_ms")]
        hidden = None if values[0] is None or values[2] is None else values[0] - values[2]
        words = [_value(value) for value in (*values, hidden)]
        lines.append(f"{name.replace('_', '.'):<12} " + " ".join(f"{word:>14}" for word in words))
    return lines


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
