"""What a terminal shows of a study: its plan, and its jobs while it runs."""

import shlex
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from medserve import errors, forecast, machine
from medserve.job_runner import Step
from medserve.progress import duration
from medserve.study import Study

NO_GPU = "this machine has no GPU, or no driver that answers: every cell would fail"
MOST_NAMED = 24
"""Deployments that a plan names on a terminal."""


def print_plan(study: Study, folder: Path, json: bool) -> None:
    """Print what a run into `folder` would do, and about how long it takes."""
    found = forecast.forecast(study, folder)
    if json:
        print(msgspec.json.format(msgspec.json.encode(found), indent=1).decode())
        return
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for work in (work for work in found.work if work.jobs):
        done = f", {work.done} of them done" if work.done else ""
        table.add_row(work.kind, f"{work.jobs} {work.what}{done}", f"about {duration(work.seconds)}")
    console = Console()
    console.print(f"{study.title} ({study.name})", style="bold")
    console.print(table)
    for deployment, profiles in list(found.cells.items())[:MOST_NAMED]:
        console.print(f"  {deployment}: {', '.join(profiles)}", markup=False, highlight=False, soft_wrap=True)
    if len(found.cells) > MOST_NAMED:
        console.print(f"  and {len(found.cells) - MOST_NAMED} more deployments (--json names all)")
    if study.device == "cuda" and not machine.gpus():
        console.print(NO_GPU, style="yellow")
    for server in study.servers:
        if server.command:
            if not server.environment and shutil.which(server.command[0]) is None:
                console.print(f"no program here: {server.command[0]}, of {server.name}", markup=False, style="yellow")
            words = errors.printable(shlex.join(server.command))
            console.print(f"runs a program of the study: {words}", markup=False, highlight=False, soft_wrap=True)
    for words in found.left_out:
        console.print(f"left out: {words}", style="dim", markup=False, highlight=False)
    print(f"About {duration(found.seconds)} on this machine, into {folder}")


class Screen:
    """One line a finished job; on a terminal, one more that changes while a job works."""

    def __init__(self, first_line: Callable[[], str] | None = None) -> None:
        self._first_line = first_line
        self._terminal = sys.stderr.isatty()
        self._last = 0.0

    def show(self, step: Step) -> None:
        """Print a step of a job."""
        if self._first_line is not None:
            print(self._first_line(), file=sys.stderr, flush=True)
            self._first_line = None
        clear = "\r\x1b[2K" if self._terminal else ""
        if step.state in ("done", "failed"):
            left = f"   {duration(step.seconds_left)} left" if step.seconds_left and step.done < step.total else ""
            mark = "" if step.state == "done" else f"   FAILED: {step.note}"
            took = duration(step.seconds or 0.0)
            place = f"[{step.done}/{step.total}]"
            words = errors.printable(f"{place:>8} {step.kind:<10} {step.name}  {took}{left}{mark}")
            print(f"{clear}{words}", file=sys.stderr, flush=True)
        elif self._terminal and time.monotonic() - self._last > 0.5:
            # Nothing is drawn while a cell is measured: stages that measure send no progress.
            self._last = time.monotonic()
            words = errors.printable(f"         {step.kind:<10} {step.name}  {step.note}")
            print(f"{clear}{words[: Console().width - 1]}", end="", file=sys.stderr, flush=True)
