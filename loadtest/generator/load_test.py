"""One load test in one process: its plan, its requests and its record. It does not know how it was started."""

import gc
import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from gevent.event import AsyncResult
from numpy.typing import NDArray

from loadtest import samples
from loadtest.generator import payload, schedule
from loadtest.generator.connections import ConnectionCounter
from loadtest.generator.payload import Load
from loadtest.generator.records import Records
from medserve import machine
from medserve.timing import gc_paused, now


class Share(msgspec.Struct, frozen=True):
    """The part of one process in a test: from `start` (ns) on, the requests `first`, `first + step`, ... of all.

    `offsets` are its arrivals of an open loop, int64 nanoseconds after the start.
    """

    start: int
    first: int
    step: int
    offsets: NDArray[np.int64]


def arrivals(load: Load) -> NDArray[np.int64]:
    """The arrivals of an open loop; none for a closed one. Raises BadInput as `schedule.arrivals`."""
    if load.profile.mode == "open-loop":
        return schedule.arrivals(load.profile, load.seed)
    return np.zeros(0, np.int64)


class LoadTest:
    """The plan that a process follows and the record that it keeps; `fire` reports a request to Locust.

    `offsets` are the arrivals (ns) of a single process; one of several gets its own with its `share`, for which its
    users wait. Raises BadInput for a plan that cannot be followed.
    """

    def __init__(self, load: Load, fire: Callable[..., None], offsets: NDArray[np.int64] | None = None) -> None:
        payload.check(load)
        self.load = load
        self._offsets = np.zeros(0, np.int64) if offsets is None else offsets
        self.chosen, self.requests = payload.requests(load)
        self.count = len(self.requests)
        self.seed = secrets.randbits(64)
        if load.audit is not None:
            self.requests += payload.audit_requests(load, self.seed)
        self.records = Records()
        self.timed_requests: int | None = None
        self.connections = ConnectionCounter()
        self.timed_out = False
        name = f"{load.model} {load.profile.batch} x {load.profile.mode}"
        self.fire = partial(fire, request_type="POST", name=name, context={})
        self.started_users = self.active_users = 0
        self.share: AsyncResult = AsyncResult()
        self._paused = ExitStack()
        self._cpu = time.process_time()

    def begin(self, cpus: tuple[int, ...]) -> None:
        """Pin the process to `cpus` and pause the garbage collector."""
        machine.pin(cpus)
        self._paused.enter_context(gc_paused())
        self._cpu = time.process_time()

    def whole_share(self) -> Share:
        """The share of a single process: everything, starting now."""
        return Share(now(), 0, 1 if len(self._offsets) else self.load.profile.users, self._offsets)

    @property
    def start(self) -> int:
        """The start (ns); 0 before the share is known."""
        share: Share | None = self.share.value
        return 0 if share is None else share.start

    def end(self) -> dict[str, Any]:
        """Undo `begin`. Returns the facts about the process that its record carries."""
        facts = {
            "affinity": list(machine.usable_cpus()),
            "connections": self.connections.count,
            "cpu_seconds": time.process_time() - self._cpu,
            "collector_enabled": gc.isenabled(),
            "frozen_objects": gc.get_freeze_count(),
            "distinct_requests": self.count,
            "versions": machine.versions("locust", "gevent", "geventhttpclient"),
        }
        self._paused.close()
        return facts

    def write(self) -> None:
        """End, and write the files of the plan; without requests there is no file."""
        facts = self.end()
        load = self.load
        if load.out is not None and len(self.records):
            self.write_record(Path(load.out), facts)
        if load.audit is not None and self.timed_requests is not None:
            pairs = np.repeat(np.arange(payload.AUDIT_PAIRS), 2)[:, None].repeat(load.profile.batch, axis=1)
            tables = self.records.tables(np.concatenate([self.chosen, pairs]), rows=slice(self.timed_requests, None))
            samples.write_tables(Path(load.audit), tables, facts={"seed": self.seed})

    def write_record(self, path: Path, facts: dict[str, Any]) -> None:
        """Write the record of the timed requests, which are those before the audit."""
        load = self.load
        expected = None if load.expected is None else np.load(load.expected)
        measured_from = self.start + round(load.profile.warmup_seconds * 1e9)
        tables = self.records.tables(
            self.chosen, expected, measured_from, slice(0, self.timed_requests), payload.body_of(load).decode
        )
        samples.write_tables(path, tables, facts=facts)
