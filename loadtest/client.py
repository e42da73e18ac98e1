"""The load generator as a child process: Locust on its own cores, started, waited for, ended."""

import time
from collections.abc import Callable
from pathlib import Path

from loadtest.payload import Load
from medserve import process, store
from medserve.errors import CannotRun

LOCUSTFILE = Path(__file__).parent / "locustfile.py"
START_SECONDS = 60.0
"""More than Locust takes to start on a slow machine."""
LOOK_SECONDS = 0.2
"""Pause between two looks at the children; the parent sleeps meanwhile."""


def generate(load: Load, log: Path, why_dead: Callable[[], str | None] = lambda: None) -> None:
    """Run Locust to the end of its plan, asleep beside it. Raises CannotRun with the reason when it does not get there.

    `why_dead` says why the server is dead, or null while it is not; then Locust is ended, and what it recorded is kept.
    """
    plan = log.with_name("load.json")
    store.write_json(plan, load)
    profile = load.profile
    words = ["-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--host", load.url]
    words += ["--users", str(profile.users), "--spawn-rate", str(profile.users), "--only-summary"]
    words += ["--loglevel", "WARNING", "--exit-code-on-error", "0"]
    deadline = time.monotonic() + START_SECONDS + profile.warmup_seconds + profile.seconds + load.patience
    with log.open("wb") as output:
        child = process.start(words, stdout=output, stderr=output, env={"MEDSERVE_LOAD": str(plan)})
    try:
        while child.poll() is None:
            if reason := why_dead():
                raise CannotRun(reason)
            if time.monotonic() > deadline:
                raise CannotRun("the load generator did not end with its plan")
            time.sleep(LOOK_SECONDS)
    finally:
        code = process.stop(child)
    if reason := why_dead():
        raise CannotRun(reason)
    if code != 0:
        raise CannotRun(f"the load generator ended: {process.describe_exit(code)}: {_said(log)}")


def _said(log: Path) -> str:
    """The line of its log that says why; Locust prints its statistics after it."""
    errors = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("error: ")]
    return errors[-1].removeprefix("error: ") if errors else process.last_line(log)
