"""The doing of `medserve load`: one run, or a ladder of users, against a server by its URL.

Each run is a Locust process of its own. What is wrong with a run ends as one line in CannotRun; the record, if it is to
be kept, then says so too.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from loadtest import samples
from loadtest.analysis import audit
from loadtest.analysis.saturation import Rung, knee
from loadtest.generator.payload import Load
from loadtest.measure.locust_process import generate
from loadtest.results import faults, latency
from loadtest.results.summary import in_words, summarise
from medserve.errors import BadInput, CannotRun
from medserve.progress import Progress
from medserve.spec import LoadProfile

COLUMNS = tuple(dict.fromkeys((*latency.COLUMNS, *latency.BREAKDOWN_COLUMNS, "error")))
"""What the figures want of a record; the rest of ten million rows would not fit beside them."""


class Runs:
    """Runs of one plan that differ in profile and seed. Their records are kept at `plan.out`, if anywhere.

    Where there are several, they are numbered: samples-1.parquet, samples-2.parquet, ...
    """

    def __init__(self, plan: Load, processes: int, scratch: Path, numbered: bool) -> None:
        self.plan, self.processes = plan, processes
        self.scratch, self._numbered = scratch, numbered
        self._count = 0
        self.out = Path()

    def run(self, profile: LoadProfile, seed: int) -> pa.Table:
        """One run to its end: its record. Raises CannotRun when the generator does not get there."""
        self._count += 1
        self.out = self._place()
        # An older record of that name must not pass for this run's.
        self.out.unlink(missing_ok=True)
        load = msgspec.structs.replace(self.plan, profile=profile, seed=seed, out=str(self.out))
        try:
            generate(load, self.scratch / "locust.log", processes=self.processes)
        except (CannotRun, KeyboardInterrupt) as error:
            raise type(error)(self.spoilt(str(error) or "interrupted")) from None
        # Where no request was due, nothing is written.
        return samples.read(self.out, COLUMNS) if self.out.is_file() else samples.SCHEMA.empty_table().select(COLUMNS)

    def spoilt(self, reason: str) -> str:
        """The reason with where the record is that now carries it, if one is kept."""
        if self.plan.out is None or not self.out.is_file():
            return reason
        samples.mark(self.out, reason)
        return f"{reason} (the record is kept, marked incomplete: {self.out})"

    def _place(self) -> Path:
        if self.plan.out is None:
            return self.scratch / "samples.parquet"
        out = Path(self.plan.out)
        return out.with_name(f"{out.stem}-{self._count}{out.suffix}") if self._numbered else out


def single(runs: Runs, json: bool) -> None:
    """One run: its figures, then what is wrong with it, if anything is."""
    plan = runs.plan
    profile = plan.profile
    table = runs.run(profile, plan.seed)
    reason, said = _figures(table, profile)
    said |= {"url": plan.url, "model": plan.model, "mode": profile.mode, "batch": profile.batch}
    said |= {"rate_asked": profile.rate, "incomplete": reason}
    lines = [f"{plan.model} at {plan.url}, {_how(profile)}, batches of {profile.batch}", in_words(said)]
    if plan.audit is not None:
        found = audit.audit(latency.service_time(samples.read(Path(plan.audit))))
        said["repeats"] = msgspec.to_builtins(found)
        word = "the server answers from a CACHE" if found.cached else "no cache"
        lines.append(
            f"same again   {found.ratio:.3g} of the time of a fresh image ({found.low:.3g} to {found.high:.3g}): {word}"
        )
    say(said, lines, json)
    if reason is not None:
        raise CannotRun(runs.spoilt(reason))


def ladder(runs: Runs, rungs: Sequence[int], json: bool) -> None:
    """Closed loops of more and more users, the knee marked; a latency above it is not told, for it is a queue's."""
    plan = runs.plan
    progress = Progress("ladder", len(rungs), "rung")
    rows: list[dict[str, Any]] = []
    broken: str | None = None
    for users in rungs:
        profile = msgspec.structs.replace(plan.profile, users=users)
        reason, said = _figures(runs.run(profile, plan.seed), profile)
        rows.append({"users": users, **said})
        if reason is not None:
            reason = f"{users} users: {runs.spoilt(reason)}"
            broken = broken or reason
        progress.update(len(rows), f"{users} users")
        if said["n"] == said["failed"]:
            break
    climbed = [
        Rung(users=row["users"], throughput=row["throughput"], p50_ms=row["p50_ms"]) for row in rows if row["p50_ms"]
    ]
    top = knee(climbed) if climbed else None
    lines = [f"{plan.model} at {plan.url}, users back to back, batches of {plan.profile.batch}"]
    lines.append(f"{'users':>5} {'requests/s':>11} {'p50 ms':>9} {'p99 ms':>9}")
    for row in rows:
        row["above_knee"] = top is not None and row["users"] > top
        if row["above_knee"]:
            row.update({name: None for name in row if name.endswith(("_ms", "_low", "_high"))})
        told = " ".join(f"{_number(row[name]):>9}" for name in ("p50_ms", "p99_ms"))
        mark = (
            "  above the knee: a queue's latency" if row["above_knee"] else "  <- knee" if row["users"] == top else ""
        )
        lines.append(f"{row['users']:>5} {_number(row['rate_delivered']):>11} {told}{mark}")
    said = {"url": plan.url, "model": plan.model, "knee": top, "incomplete": broken, "rungs": rows}
    say(said, lines, json)
    if broken is not None:
        raise CannotRun(broken)


def one_record(path: Path, format: str) -> None:
    """Print the figures of one record, and the mark that it bears."""
    said = summarise(samples.read(path, COLUMNS)) | {"incomplete": samples.read_facts(path).get("incomplete")}
    if format not in ("table", "json"):
        raise BadInput(f"one record has no --format {format}; expected table or json")
    lines = [str(path), in_words(said)]
    if said["incomplete"]:
        lines.append(f"incomplete   {said['incomplete']}")
    say(said, lines, format == "json")


def say(said: dict[str, Any], lines: Sequence[str], json: bool) -> None:
    """Print figures as JSON, or lines."""
    print(msgspec.json.encode(said).decode() if json else "\n".join(lines), flush=True)


def _figures(table: pa.Table, profile: LoadProfile) -> tuple[str | None, dict[str, Any]]:
    """What is wrong with a run, or null, and its figures from where its steady state began."""
    if not len(latency.after_warmup(table)):
        raise CannotRun(f"no request fell into the {profile.seconds:g} s after the warm-up; give it more --seconds")
    broken = faults.failures(table) or faults.lateness(table)
    began = latency.planned_start(latency.after_warmup(table))
    table, _ = latency.mark_warmup(table)
    kept = latency.planned_start(latency.after_warmup(table))
    cut = float(kept.min() - began.min()) / 1e9
    said = summarise(table, 0.0 if profile.rate is None else profile.seconds - cut)
    said["warmup_found_seconds"] = cut
    return broken or (said["steady_reason"] if said["steady"] is False else None), said


def _how(profile: LoadProfile) -> str:
    if profile.mode == "open-loop":
        return f"{profile.arrivals} arrivals" + ("" if profile.rate is None else f" of {profile.rate:g}/s")
    rest = f", {profile.gap_seconds:g} s apart" if profile.gap_seconds else " back to back"
    return f"{profile.users} {'user' if profile.users == 1 else 'users'}{rest}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
