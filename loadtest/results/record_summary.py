"""The figures of one record, and their text for a terminal: counts, rates, latency by three definitions, breakdown."""

from math import ceil
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loadtest.analysis import intervals, steady, within_launch
from loadtest.results import latency
from medserve.numbers import interval, number

COLUMNS = tuple(dict.fromkeys((*latency.COLUMNS, *latency.BREAKDOWN_COLUMNS, "error")))
"""The columns that `summarise` needs; the others of ten million rows would not fit into memory beside them."""
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999}


def summarise(table: pa.Table, seconds: float = 0.0) -> dict[str, Any]:
    """Figures of the rows after the warm-up; percentiles in milliseconds, `reasons` by the name of one that is null.

    By any definition there is a percentile where there are `intervals.least_samples` requests. That of the headline,
    the latency from the intended start, has its 95 % interval within this record. Rates are over at least `seconds`,
    the length of an open loop's schedule. An open loop also has `*_service_ms`, `*_uncorrected_ms` and the send lag;
    where the server reports its stages, there is the `breakdown`. `steady` is null when too few requests tell.
    """
    table = latency.after_warmup(table)
    errors = [error for error in table["error"].unique().to_pylist() if error]
    rows = latency.by_planned_start(table.select(latency.COLUMNS))
    good = latency.succeeded(rows)
    duration = latency.duration_seconds(rows, seconds)
    latencies = latency.from_intended_start(rows)
    steadiness = steady.find(latencies, latency.planned_start(rows))
    figures: dict[str, Any] = {
        "n": len(rows),
        "failed": int((~good).sum()),
        "wrong": pc.sum(rows["wrong"]).as_py() or 0,
        "error": errors[0] if errors else None,
        "seconds": duration,
        "rate_delivered": int(good.sum()) / duration if duration else None,
        "throughput": (pc.sum(rows["batch"].filter(pa.array(good))).as_py() or 0) / duration if duration else None,
        "steady": None if steadiness.steady and steadiness.reason else steadiness.steady,
        "steady_reason": steadiness.reason,
    }
    ordered = np.sort(latencies)
    reasons: dict[str, str] = {}
    for name, p in PERCENTILES.items():
        found = within_launch.percentile_interval(latencies, ordered, p)
        figures |= {f"{name}_ms": found.value, f"{name}_low": found.low, f"{name}_high": found.high}
        if found.reason and found.low is None:
            key = f"{name}_low" if found.value is not None else f"{name}_ms"
            reasons[key] = _why_absent(len(ordered), p, duration) or found.reason
    del latencies, ordered  # of ten million rows 80 MB, as much as each further definition takes
    if not rows["intended_ns"].null_count and len(rows):
        for definition, of in latency.DEFINITIONS.items():
            values = of(rows)
            values.sort()
            for name in ("p50", "p99") if definition == "lag" else PERCENTILES:
                found = intervals.estimate([values], PERCENTILES[name])
                key, scale = latency.percentile_name(name, definition)
                figures[key] = None if found.value is None else found.value * scale
                if found.value is None and found.reason:
                    reasons[key] = _why_absent(len(values), PERCENTILES[name], duration) or found.reason
            del values
    figures["reasons"] = reasons
    if table["infer_ns"].null_count < len(table):
        figures["breakdown"] = [msgspec.to_builtins(term) for term in latency.breakdown(table)]
    return figures


def stages(columns: dict[str, Any]) -> dict[str, float]:
    """Median milliseconds of each stage of a staged pass, without its warm-up."""
    kept = ~columns["warmup"]
    return {
        name.removesuffix("_ns"): float(np.median(columns[name][kept])) / 1e6 for name in columns if name != "warmup"
    }


def as_text(figures: dict[str, Any]) -> str:
    """The figures of `summarise` in a few lines."""
    lines = [f"requests     {figures['n']:,} in {number(figures['seconds'])} s"]
    if figures["rate_delivered"] is not None:
        asked = f" of {figures['rate_asked']:g} asked" if figures.get("rate_asked") else ""
        lines[0] += f": {number(figures['rate_delivered'])}/s{asked}, {number(figures['throughput'])} images/s"
    if figures["failed"]:
        lines.append(
            f"failed       {figures['failed']:,} ({figures['wrong']:,} wrong): {figures['error'] or 'other scores'}"
        )
    if cut := figures.get("warmup_found_seconds"):
        lines.append(f"warm-up      {number(cut)} s beyond the configured one, slower: not in these figures")
    if figures["steady_reason"]:
        lines.append(f"steady       {figures['steady_reason']}")
    if figures.get("lag_p50_us") is not None:
        tail = "" if figures["lag_p99_us"] is None else f", p99 {number(figures['lag_p99_us'])} us"
        lines.append(f"send lag     p50 {number(figures['lag_p50_us'])} us{tail} behind the schedule")
    if "p50_service_ms" in figures:
        lines += ["", *_definitions(figures)]
    else:
        lines += [f"{name.replace('_', '.'):<12} {_with_interval(figures, name)}" for name in PERCENTILES]
    lines += [f"{name:<12} {number(value)} ms (median)" for name, value in figures.get("stages_ms", {}).items()]
    if terms := figures.get("breakdown"):
        lines += ["", f"{'latency breakdown':<20} {'p50 ms':>10} {'p99 ms':>10} {'mean share':>11}"]
        lines += [
            f"{term['name']:<20} {number(term['p50_ms']):>10} {number(term['p99_ms']):>10} {term['share']:>11.1%}"
            for term in terms
        ]
    return "\n".join(lines)


def _with_interval(figures: dict[str, Any], name: str) -> str:
    if figures[f"{name}_ms"] is None:
        return f"- ({figures['reasons'][f'{name}_ms']})"
    bounds = interval(figures[f"{name}_low"], figures[f"{name}_high"])
    return f"{number(figures[f'{name}_ms'])} ms {bounds}".rstrip()


def _why_absent(count: int, p: float, seconds: float) -> str | None:
    """By how many requests a percentile is not estimable, and how long a record would suffice; null if it is."""
    least = intervals.least_samples(p)
    if count >= least:
        return None
    longer = f"; --seconds {ceil(max(1.0, seconds * least / count))}" if count else ""
    return f"n {count:,} < {least:,}{longer}"


def _definitions(figures: dict[str, Any]) -> list[str]:
    """Latency by the three definitions side by side, and what the uncorrected one omits."""
    heads = ("intended start", "service time", "uncorrected", "omitted by it")
    lines = [f"{'latency, ms':<12} " + " ".join(f"{head:>14}" for head in heads)]
    for name in PERCENTILES:
        values = [figures[f"{name}_{of}"] for of in ("ms", "service_ms", "uncorrected_ms")]
        omitted = None if values[0] is None or values[2] is None else values[0] - values[2]
        words = [number(value) for value in (*values, omitted)]
        lines.append(f"{name.replace('_', '.'):<12} " + " ".join(f"{word:>14}" for word in words))
    absent = {name: reason for name, reason in figures["reasons"].items() if not name.endswith("_low")}
    for reason in dict.fromkeys(absent.values()):
        names = [name.removesuffix("_ms") for name in absent if absent[name] == reason]
        lines.append(f"{'-':<12} {', '.join(names)}: {reason}")
    return lines
