"""The runs of `medserve load`: one run, or one for each number of users, against a server by its URL.

Each run is a Locust process of its own. A run with a problem ends as one line in CannotRun; its record, if it is kept,
is marked incomplete with the same line.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from loadtest import samples
from loadtest.analysis.scaling import saturation_point
from loadtest.analysis.within_launch import audit
from loadtest.commands.shared import print_figures
from loadtest.generator.payload import Load
from loadtest.measure.locust_process import generate
from loadtest.results import faults, latency
from loadtest.results.record_summary import COLUMNS, as_text, summarise
from medserve.errors import CannotRun
from medserve.numbers import interval, number
from medserve.progress import Progress
from medserve.spec import LoadProfile


class Runs:
    """Runs of one plan that differ in profile and seed. Their records are kept at `plan.out`, if it is given.

    `numbered` gives each run a file of its own: samples-1.parquet, samples-2.parquet, ... With `strict` a run without a
    steady state has a problem.
    """

    def __init__(self, plan: Load, processes: int, scratch: Path, numbered: bool, strict: bool = False) -> None:
        self.plan, self.processes, self.strict = plan, processes, strict
        self.scratch, self._numbered = scratch, numbered
        self._count = 0
        self.out = Path()

    def run(self, profile: LoadProfile, seed: int, look: Callable[[int], None] = lambda _: None) -> pa.Table:
        """The record of one complete run. Raises CannotRun when the generator does not finish it.

        `look` as in `locust_process.generate`.
        """
        self._count += 1
        if self.plan.out is None:
            self.out = self.scratch / "samples.parquet"
        else:
            out = Path(self.plan.out)
            self.out = out.with_name(f"{out.stem}-{self._count}{out.suffix}") if self._numbered else out
        # An older record of that name must not pass for this run's.
        self.out.unlink(missing_ok=True)
        load = msgspec.structs.replace(self.plan, profile=profile, seed=seed, out=str(self.out))
        try:
            generate(load, self.scratch / "locust.log", processes=self.processes, look=look)
        except (CannotRun, KeyboardInterrupt) as error:
            raise type(error)(self.mark_incomplete(str(error) or "interrupted")) from None
        # Where no request was due, nothing is written.
        return samples.read(self.out, COLUMNS) if self.out.is_file() else samples.SCHEMA.empty_table().select(COLUMNS)

    def mark_incomplete(self, reason: str) -> str:
        """Write the reason into the record, if it is kept; returns the reason with the path of the record."""
        if self.plan.out is None or not self.out.is_file():
            return reason
        samples.mark(self.out, reason)
        return f"{reason} (the record is kept, marked incomplete: {self.out})"


def single(runs: Runs, json: bool) -> None:
    """Print the figures of one run. Raises CannotRun when it has a problem."""
    plan = runs.plan
    profile = plan.profile
    problem, figures = _figures(runs.run(profile, plan.seed), profile, runs.strict)
    figures |= {"url": plan.url, "model": plan.model, "mode": profile.mode, "batch": profile.batch}
    figures |= {"rate_asked": profile.rate, "incomplete": problem}
    lines = [f"{plan.model} at {plan.url}, {_load_words(profile)}, batches of {profile.batch}", as_text(figures)]
    if plan.audit is not None:
        found = audit(latency.service_time(samples.read(Path(plan.audit))))
        figures["audit"] = msgspec.to_builtins(found)
        answer = "the server answers from a CACHE" if found.cached else "no cache"
        measured = f"{number(found.ratio)} of the time of a new image {interval(found.low, found.high)}"
        lines.append(f"repeated     {measured}: {answer}")
    print_figures(figures, lines, json)
    if problem is not None:
        raise CannotRun(runs.mark_incomplete(problem))


def ladder(runs: Runs, steps: Sequence[int], json: bool) -> None:
    """Print the figures of closed loops of more and more users, with the saturation point.

    Latency beyond it is left out, because requests there wait for one another. Raises CannotRun when a run has a
    problem.
    """
    plan = runs.plan
    progress = Progress("ladder", len(steps), "run")
    rows: list[dict[str, Any]] = []
    first_problem: str | None = None
    for users in steps:
        profile = msgspec.structs.replace(plan.profile, users=users)
        problem, figures = _figures(runs.run(profile, plan.seed), profile, runs.strict)
        rows.append({"users": users, **figures})
        if problem is not None:
            problem = f"{users} users: {runs.mark_incomplete(problem)}"
            first_problem = first_problem or problem
        progress.update(len(rows), f"{users} users")
        if figures["n"] == figures["failed"]:
            break
    point = saturation_point((row["users"], row["throughput"], row["p50_ms"]) for row in rows)
    lines = [f"{plan.model} at {plan.url}, back-to-back users, batches of {plan.profile.batch}"]
    lines.append(f"{'users':>5} {'requests/s':>11} {'p50 ms':>9} {'p99 ms':>9}")
    for row in rows:
        row["beyond_saturation"] = point is not None and row["users"] > point
        if row["beyond_saturation"]:
            row.update({name: None for name in row if name.endswith(("_ms", "_low", "_high"))})
        percentiles = " ".join(f"{number(row[name]):>9}" for name in ("p50_ms", "p99_ms"))
        mark = "  <- saturation point" if row["users"] == point else ""
        mark = "  beyond saturation: queueing latency" if row["beyond_saturation"] else mark
        lines.append(f"{row['users']:>5} {number(row['rate_delivered']):>11} {percentiles}{mark}")
    figures = {"url": plan.url, "model": plan.model, "saturation_point": point}
    print_figures(figures | {"incomplete": first_problem, "steps": rows}, lines, json)
    if first_problem is not None:
        raise CannotRun(first_problem)


def _figures(table: pa.Table, profile: LoadProfile, strict: bool) -> tuple[str | None, dict[str, Any]]:
    """The problem of a run, or null, and its figures without what was found to be warm-up."""
    if not len(latency.after_warmup(table)):
        raise CannotRun(f"no request fell into the {profile.seconds:g} s after the warm-up; give it more --seconds")
    problem = faults.failures(table) or faults.lateness(table)
    configured = latency.planned_start(latency.after_warmup(table))
    table, _ = latency.mark_warmup(table)
    kept = latency.planned_start(latency.after_warmup(table))
    cut = float(kept.min() - configured.min()) / 1e9
    figures = summarise(table, 0.0 if profile.rate is None else profile.seconds - cut)
    figures["warmup_found_seconds"] = cut
    return problem or (figures["steady_reason"] if strict and figures["steady"] is False else None), figures


def _load_words(profile: LoadProfile) -> str:
    if profile.mode == "open-loop":
        return f"{profile.arrivals} arrivals" + ("" if profile.rate is None else f" at {profile.rate:g}/s")
    gap = f", {profile.gap_seconds:g} s apart" if profile.gap_seconds else " back to back"
    return f"{profile.users} {'user' if profile.users == 1 else 'users'}{gap}"
