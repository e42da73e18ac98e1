"""One test in one process: its plan, its requests, and what came back. What it does not know: how it was started."""

import gc
import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from gevent.event import Event
from numpy.typing import NDArray

from loadtest import samples
from loadtest.generator import payload, schedule
from loadtest.generator.connections import Opened
from loadtest.generator.payload import Load
from loadtest.generator.records import Records
from medserve import machine
from medserve.timing import now, quiet_collector


class Share(msgspec.Struct, frozen=True):
    """What one process does of a test: from `start` (ns) the requests `first`, `first + step`, ... of all.

    `offsets` are the arrivals of an open loop that are its own, int64 nanoseconds after the start.
    """

    start: int
    first: int
    step: int
    offsets: NDArray[np.int64]


def arrivals(load: Load) -> NDArray[np.int64]:
    """The arrivals of an open loop, none of a closed one. Raises BadInput as `schedule.arrivals`."""
    if load.profile.mode == "open-loop":
        return schedule.arrivals(load.profile, load.seed)
    return np.zeros(0, np.int64)


class Test:
    """The plan that a process follows and the record that it keeps; `fire` tells Locust of a request.

    `offsets` are the arrivals (ns) of a process that is alone; others are given theirs with their share.
    Raises BadInput for a plan that cannot be followed.
    """

    def __init__(self, load: Load, fire: Callable[..., None], offsets: NDArray[np.int64] | None = None) -> None:
        payload.check(load)
        self.load = load
        self._offsets = np.zeros(0, np.int64) if offsets is None else offsets
        self.chosen, self.requests = payload.requests(load)
        self.count = len(self.requests)
        self.seed = secrets.randbits(64)
        if load.audit is not None:
            self.requests += payload.audited(load, self.seed)
        self.records = Records()
        self.timed: int | None = None
        self.opened = Opened()
        self.late = False
        self.name = f"{load.model} {load.profile.batch} x {load.profile.mode}"
        self.fire = fire
        self.begun = self.active = 0
        self.share: Share | None = None
        self._shared = Event()
        self._measuring = ExitStack()
        self._cpu = time.process_time()

    def measure(self, cpus: tuple[int, ...]) -> None:
        """Begin the measuring, bound to `cpus`."""
        machine.pin(cpus)
        self._measuring.enter_context(quiet_collector())
        self._cpu = time.process_time()

    def whole(self) -> Share:
        """The share of a process that is alone: everything, from now on."""
        return Share(now(), 0, 1 if len(self._offsets) else self.load.profile.users, self._offsets)

    def give(self, share: Share) -> None:
        """Let the users begin."""
        self.share = share
        self._shared.set()

    def wait(self) -> Share:
        """Called by each user: what it shall do, once that is known."""
        self._shared.wait()
        assert self.share is not None
        return self.share

    def close(self) -> dict[str, Any]:
        """End the measuring. Returns what must be known of the process beside the record."""
        cpu_seconds = time.process_time() - self._cpu
        collector = {"collector_enabled": gc.isenabled(), "frozen_objects": gc.get_freeze_count()}
        self._measuring.close()
        return {
            "affinity": list(machine.usable_cpus()),
            "connections": self.opened.count,
            "cpu_seconds": cpu_seconds,
            **collector,
            "distinct_requests": self.count,
            "versions": machine.versions("locust", "gevent", "geventhttpclient"),
        }

    def write(self) -> None:
        """Close, and write the files of the plan; no request, no file."""
        facts = self.close()
        load = self.load
        if load.out is not None and len(self.records):
            self.write_record(Path(load.out), facts)
        if load.audit is not None and self.timed is not None:
            pairs = np.repeat(np.arange(payload.AUDITED), 2)[:, None].repeat(load.profile.batch, axis=1)
            tables = self.records.tables(np.concatenate([self.chosen, pairs]), rows=slice(self.timed, None))
            samples.write_tables(Path(load.audit), tables, facts={"seed": self.seed})

    def write_record(self, path: Path, facts: dict[str, Any]) -> None:
        """Work the record of the timed requests out and write it."""
        load, start = self.load, 0 if self.share is None else self.share.start
        expected = None if load.expected is None else np.load(load.expected)
        measured_from = start + round(load.profile.warmup_seconds * 1e9)
        tables = self.records.tables(self.chosen, expected, measured_from, slice(0, self.timed))
        samples.write_tables(path, tables, facts=facts)
