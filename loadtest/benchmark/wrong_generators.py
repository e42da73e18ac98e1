"""Load generators that are wrong on purpose, for the self-test to find: a locustfile, and how often each is found.

The variable MEDSERVE_FAULT names the fault of a process of Locust that is started with this file.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import gevent

from loadtest.analysis.within_launch import clopper_pearson
from loadtest.benchmark.bench import Line, tell
from loadtest.generator import locustfile, records, schedule
from loadtest.generator.load_test import Share
from loadtest.generator.locustfile import Client
from loadtest.measure import locust_process
from loadtest.selftest import run as selftest
from medserve.timing import now

FAULT = "MEDSERVE_FAULT"
LATE_NS = 300_000
FORGOTTEN_NS = 100_000_000
DROPPED = 150
"""The number of the request that is not recorded."""

_spin_until, _note, _arrivals = locustfile._spin_until, records.Records.note, schedule.arrivals


def late() -> None:
    """Each request is sent 0.3 ms after its intended start."""
    locustfile._spin_until = lambda due: _spin_until(due + LATE_NS)


def lost_stall() -> None:
    """Requests that took longer than 0.1 s are not recorded."""

    def note(self: records.Records, *given: object) -> None:
        intended, done = given[3], given[6]
        if not isinstance(intended, int) or not isinstance(done, int) or done - intended < FORGOTTEN_NS:
            _note(self, *given)  # type: ignore[arg-type]  # as it was called

    records.Records.note = note  # type: ignore[assignment]


def dropped_request() -> None:
    """One request is not recorded."""
    count = iter(range(1 << 60))

    def note(self: records.Records, *given: object) -> None:
        if next(count) != DROPPED:
            _note(self, *given)  # type: ignore[arg-type]

    records.Records.note = note  # type: ignore[assignment]


def closed_loop() -> None:
    """A request waits for the answer to the one before it, and is dated when it could be sent."""

    def send(self: Client, share: Share) -> None:
        for number, offset in enumerate(share.offsets.tolist()):
            gevent.sleep(max(0, share.start + offset - now()) / 1e9)
            self.send((share.first + number) % self.test.count, now())

    Client.send_by_schedule = send  # type: ignore[method-assign]


def wrong_schedule() -> None:
    """Requests are evenly spaced instead of at random."""
    schedule.arrivals = lambda profile, seed: schedule.constant(profile.rate or 1.0, _arrivals(profile, seed)[-1] / 1e9)


FAULTS = {fault.__name__: fault for fault in (late, lost_stall, dropped_request, closed_loop, wrong_schedule)}


def measure(runs: int, only: list[str]) -> Iterator[Line]:
    """The share of self-tests that fail: of a sound generator, then of each wrong one."""
    for name in only or ["sound", *FAULTS]:
        failed = 0
        for run in range(runs):
            file = Path(__file__) if name in FAULTS else locust_process.LOCUSTFILE
            with (
                tempfile.TemporaryDirectory() as scratch,
                mock.patch.object(locust_process, "LOCUSTFILE", file),
                mock.patch.dict(os.environ, {FAULT: name}),
            ):
                done = selftest.run([28], Path(scratch) / "selftest")
            failed += bool(done.failed)
            tell(f"{name} {run + 1}/{runs}: {selftest.why_failed(done) or 'holds'}")
        low, high = clopper_pearson(failed, runs)
        target = {"high": 2.0} if name == "sound" else {"low": 95.0}
        note = f"{failed} of {runs}, 95 % interval {100 * low:.1f} to {100 * high:.1f} %"
        yield Line(part="self-test", name=f"{name}: fails", value=100 * failed / runs, unit="%", note=note, **target)


if os.environ.get(FAULT) in FAULTS:
    FAULTS[os.environ[FAULT]]()
