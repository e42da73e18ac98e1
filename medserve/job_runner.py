"""The jobs of a run: one process each, with its log, its place among all jobs, and its failure as a row."""

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from medserve import process, stage, store
from medserve.errors import CannotRun
from medserve.jobs import Failure
from medserve.progress import Jobs, Progressed, describe


class Step(msgspec.Struct, frozen=True):
    """What the runner says while it works: `state` is started, progress, done or failed; times in seconds."""

    state: str
    kind: str
    name: str
    done: int
    total: int
    note: str = ""
    seconds: float | None = None
    seconds_left: float | None = None


Listener = Callable[[Step], None]


class JobRunner:
    """Runs the jobs of the run in the folder `out`, each for at most `hours`, and counts those that failed.

    `counts` are the jobs of each kind, `side_by_side` how many of a kind go at a time, where that is more than one.
    """

    def __init__(
        self, out: Path, hours: float, counts: Mapping[str, int], side_by_side: Mapping[str, int], listen: Listener
    ) -> None:
        self._out, self._seconds, self._listen = out, hours * 3600, listen
        self._jobs = Jobs(dict(counts), dict(side_by_side))
        # Exports go side by side.
        self._lock = threading.RLock()
        self.failed = 0
        self.stopped = False

    def run(
        self,
        kind: str,
        name: str,
        words: list[str],
        env: Mapping[str, str] | None = None,
        said: list[bytes] | None = None,
        by: str = "",
    ) -> str | None:
        """Run one job to its end. Returns None, or the reason why it failed; appends what it prints to `said`.

        `by` is the framework or runtime that does it, whose environment may be another.
        """
        started = time.monotonic()
        self.say("started", kind, name)
        log = self._out / "logs" / f"{kind}.{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)

        def show(event: Progressed) -> None:
            self.say("progress", kind, name, describe(event))

        try:
            python = process.python_of(by)
            code, printed, reason = stage.run(words, log, seconds=self._seconds, env=env, python=python, show=show)
        except CannotRun as error:
            code, printed, reason = 1, b"", str(error)
        if self.stopped:
            raise KeyboardInterrupt
        if said is not None:
            said.append(printed)
        self.ended(kind, name, started, reason if code else None)
        return reason if code else None

    def ended(self, kind: str, name: str, started: float, reason: str | None) -> None:
        """Count a job that began at `started` (monotonic seconds) and failed for a reason, or did not."""
        seconds = time.monotonic() - started
        with self._lock:
            self._jobs.done(kind, seconds)
            self.say("failed" if reason else "done", kind, name, reason or "", seconds)

    def skip(self, kind: str) -> None:
        """Count a job that is done already, or that cannot begin."""
        with self._lock:
            self._jobs.skip(kind)

    def remember(self, stage: str, name: str, reason: str | None) -> None:
        """Write the failure of a job down, or remove the one of an earlier time."""
        path = self._out / "failures" / f"{stage}-{name}.json"
        if reason is None:
            path.unlink(missing_ok=True)
        else:
            store.write_json(path, Failure(stage=stage, name=name, reason=reason))
            with self._lock:
                self.failed += 1

    def say(self, state: str, kind: str, name: str, note: str = "", seconds: float | None = None) -> None:
        """Tell the listener, with the jobs that are done and the time left."""
        with self._lock:
            jobs = self._jobs
            self._listen(Step(state, kind, name, jobs.finished, jobs.total, note, seconds, jobs.left()))
