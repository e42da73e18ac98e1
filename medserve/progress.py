"""Progress with time left: one calm line for a person, one JSON line a step for the study runner, and its jobs."""

import os
import sys
import time
from statistics import fmean

import msgspec

from medserve.errors import EVENTS, print_event, printable


class Progressed(msgspec.Struct, frozen=True, tag_field="event", tag="progress"):
    """A line of a job's standard output: `done` of `total` steps, each a `unit`, are done."""

    done: int
    total: int
    unit: str
    note: str
    seconds_left: float | None


class Progress:
    """Counts `total` steps of `what`. Writes at most once a second to a terminal, every ten seconds to a file."""

    def __init__(self, what: str, total: int, unit: str) -> None:
        self.what, self.total, self.unit = what, total, unit
        self._started = time.monotonic()
        self._first_done = 0
        self._counted_from: tuple[float, int] | None = None
        self._written = 0.0
        self._events = bool(os.environ.get(EVENTS))
        self._terminal = sys.stderr.isatty()

    def resume(self, done: int) -> None:
        """Steps done before this process began; they do not count towards its speed."""
        self._first_done = done

    def update(self, done: int, note: str = "") -> None:
        """Say that `done` of `total` steps are done."""
        now = time.monotonic()
        if self._counted_from is None and done > self._first_done:
            self._counted_from = now, done
        finished = done >= self.total
        pause = 1.0 if self._terminal or self._events else 10.0
        if now - self._written < pause and not finished:
            return
        self._written = now
        # The first step says little of the others: it imports, allocates and compiles.
        began, first = self._counted_from or (now, done)
        left = (now - began) / (done - first) * (self.total - done) if done > first else None
        event = Progressed(done, self.total, self.unit, note, None if finished else left)
        if self._events:
            print_event(event)
            return
        line = printable(f"{self.what}: {describe(event)}")
        line += f", {duration(now - self._started)}" if finished else ""
        if self._terminal:
            sys.stderr.write(f"\r\x1b[2K{line}" + ("\n" if finished else ""))
        else:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()


class Jobs:
    """Counts the jobs of a run by kind, and guesses the time left from the mean of the finished ones of each kind.

    `at_a_time` says of which kinds several jobs run side by side.
    """

    def __init__(self, pending: dict[str, int], at_a_time: dict[str, int]) -> None:
        self._pending, self._at_a_time = pending, at_a_time
        self._seconds: dict[str, list[float]] = {}
        self.finished = 0

    @property
    def total(self) -> int:
        """Jobs of this run, those that were done before it too."""
        return self.finished + sum(self._pending.values())

    def skip(self, kind: str) -> None:
        """Count a job that was done before, or cannot be done."""
        self._pending[kind] -= 1
        self.finished += 1

    def done(self, kind: str, seconds: float) -> None:
        """Note what a job took."""
        self._pending[kind] -= 1
        self.finished += 1
        self._seconds.setdefault(kind, []).append(seconds)

    def left(self) -> float | None:
        """Seconds left; None while a kind is pending of which none has finished."""
        waiting = {kind: count for kind, count in self._pending.items() if count}
        if not waiting.keys() <= self._seconds.keys():
            return None
        return sum(count * fmean(self._seconds[kind]) / self._at_a_time.get(kind, 1) for kind, count in waiting.items())


def describe(event: Progressed) -> str:
    """A progress event in words."""
    words = [f"{event.unit} {event.done}/{event.total}"]
    if event.note:
        words.append(event.note)
    if event.seconds_left is not None:
        words.append(f"{duration(event.seconds_left)} left")
    return ", ".join(words)


def duration(seconds: float) -> str:
    """Seconds as a person says them: 42 s, 3 min 10 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
