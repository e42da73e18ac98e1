"""A test in several processes, on one machine or many, by Locust's own master and workers.

All that is added to Locust's messages: a worker says that its users are there; when all are, the master gives each
worker its share and the start; the worker says that it has finished, and hands its record over, in pieces, when it is
told to stop and before it says that it did. The plan travels with the options, which Locust hands to each worker.
"""

import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import numpy as np

from loadtest import samples
from loadtest.generator import merging, payload
from loadtest.generator.load_test import Share, Test, arrivals
from loadtest.generator.merging import Part
from loadtest.generator.payload import Load
from medserve.errors import BadInput
from medserve.timing import now

LEAD = 200_000_000
"""Nanoseconds from the giving of the shares to the start: the messages are there before it."""
PIECE = 1 << 20
"""Bytes of a record in one message."""
GRACE = 3.0
"""Seconds without a sign of any worker after which no record is waited for."""
LOOK_SECONDS = 0.5
"""Pause between two looks at whether all workers live."""
PATIENCE = 600.0
"""Seconds that a worker may take to work out and send its record."""


def host() -> str:
    """The machine and its boot: equal where processes share the monotonic clock."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return f"{socket.gethostname()} {boot}"


class Worker:
    """The side of a worker."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._test: Test | None = None
        runner.register_message("medserve_share", self._on_share)

    def ready(self, test: Test) -> None:
        """One more user of the test waits for the start."""
        self._test = test
        self._send("ready", users=test.begun)

    def finished(self) -> None:
        """All users have done what there was to do."""
        self._send("finished")

    def failed(self, reason: str) -> None:
        """There will be no record of this worker."""
        self._send("failed", reason=reason)

    def deliver(self, test: Test) -> None:
        """Send the record of a test to the master."""
        facts = test.close()
        start = 0 if test.share is None else test.share.start
        if len(test.records):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "samples.parquet"
                # In a thread, so that the master hears the heartbeat meanwhile.
                gevent.get_hub().threadpool.apply(test.write_record, (path, facts))
                with path.open("rb") as file:
                    while piece := file.read(PIECE):
                        self._send("record", piece=piece)
        self._send("record", start=start, host=host(), facts=facts)

    def _send(self, kind: str, **data: Any) -> None:
        self._runner.send_message(f"medserve_{kind}", data)

    def _on_share(self, msg: Any, **_: Any) -> None:
        data = msg.data
        start = data["start"] if data["host"] == host() else now() + LEAD
        if self._test is not None:
            self._test.give(Share(start, data["first"], data["step"], np.frombuffer(data["offsets"], np.int64)))


class Master:
    """The side of the master: it sends no request, it shares them out and puts the records together.

    `end` ends the test; it is called once a test.
    """

    def __init__(self, runner: Any, end: Callable[[], None]) -> None:
        self._runner = runner
        self._end = end
        self._load: Load | None = None
        runner.register_message("medserve_ready", self._on_ready)
        runner.register_message("medserve_finished", self._on_finished)
        runner.register_message("medserve_failed", self._on_failed)
        runner.register_message("medserve_record", self._on_record)

    def begin(self, load: Load) -> None:
        """Prepare a test. Raises BadInput for one that cannot be made by several processes."""
        if load.audit is not None:
            raise BadInput("an audit is made by one process; leave 'audit' away, or --processes and --master")
        payload.check(load)
        self._offsets = arrivals(load)
        self._load = load
        self._over = False
        self._start: int | None = None
        self._workers = set(self._runner.clients)
        self._users: dict[str, int] = {}
        self._shared: set[str] = set()
        self._finished: set[str] = set()
        self._delivered: dict[str, dict[str, Any]] = {}
        self._reasons: dict[str, str] = {}
        self._folder = tempfile.TemporaryDirectory()
        self._watching = gevent.spawn(self._watch)

    def gather(self) -> None:
        """Stop the workers, wait for their records and write them as one. Does nothing where there is no test.

        A worker's that is missing is a line on stderr, and makes Locust leave with exit code 1.
        """
        load, self._load = self._load, None
        if load is None:
            return
        self._watching.kill(block=False)
        with self._folder:
            # A greenlet of the runner's own may be the one that receives the records: it cannot wait for them.
            if gevent.getcurrent() not in self._runner.greenlet:
                self._collect()
            for worker in self._workers - self._delivered.keys():
                self._reasons.setdefault(worker, "ended before its record was here; the record of the others is kept")
            if load.out is not None and self._delivered:
                self._write(Path(load.out))
        for worker, reason in self._reasons.items():
            print(f"error: worker {self._index(worker)} ({worker.rpartition('_')[0]}): {reason}", file=sys.stderr)
            self._runner.environment.process_exit_code = 1

    def _collect(self) -> None:
        self._runner.send_message("stop")
        since = seen = time.monotonic()
        while missing := self._workers - self._delivered.keys() - self._reasons.keys():
            if any(map(self._lives, missing)):
                seen = time.monotonic()
            if time.monotonic() > min(seen + GRACE, since + PATIENCE):
                break
            gevent.sleep(0.05)

    def _write(self, out: Path) -> None:
        here = host()
        parts = []
        for worker in sorted(self._delivered, key=self._index):
            said = self._delivered[worker]
            if self._path(worker).is_file():
                table = samples.read(self._path(worker))
                name = said["host"].partition(" ")[0]
                parts.append(Part(table, said["start"], name, said["host"] == here, said["facts"]))
        if parts:
            table, facts = merging.merge(parts, self._start or 0)
            samples.write_tables(out, [table], facts=facts)

    def _on_ready(self, msg: Any, **_: Any) -> None:
        worker = msg.node_id
        self._workers.add(worker)
        self._users[worker] = msg.data["users"]
        waited_for = self._runner.target_user_count
        if self._start is None and sum(self._users.values()) >= waited_for:
            self._start = now() + LEAD
            before = 0
            for place, each in enumerate(sorted(self._users, key=self._index)):
                if len(self._offsets):
                    self._give(each, place, len(self._users), self._offsets[place :: len(self._users)])
                else:
                    self._give(each, before, waited_for, self._offsets)
                before += self._users[each]
        elif self._start is not None and worker not in self._shared:
            # Who comes late shares in a closed loop, and finds a schedule given away.
            self._give(worker, waited_for, waited_for, self._offsets[:0])

    def _give(self, worker: str, first: int, step: int, offsets: Any) -> None:
        self._shared.add(worker)
        data = {"start": self._start, "host": host(), "first": first, "step": step, "offsets": offsets.tobytes()}
        self._runner.send_message("medserve_share", data, worker)

    def _on_finished(self, msg: Any, **_: Any) -> None:
        self._finished.add(msg.node_id)
        if self._finished >= self._shared:
            self._finish()

    def _on_failed(self, msg: Any, **_: Any) -> None:
        if msg.node_id not in self._delivered:
            self._reasons[msg.node_id] = msg.data["reason"]
            self._finish()

    def _on_record(self, msg: Any, **_: Any) -> None:
        if "piece" not in msg.data:
            self._delivered[msg.node_id] = msg.data
        else:
            with self._path(msg.node_id).open("ab") as file:
                file.write(msg.data["piece"])

    def _watch(self) -> None:
        """A test that a worker leaves is no longer the one that was asked for: it ends."""
        while True:
            gevent.sleep(LOOK_SECONDS)
            gone = [worker for worker in self._workers - self._delivered.keys() if not self._lives(worker)]
            for worker in gone:
                self._reasons[worker] = "died during the test; the record of the others is kept"
            if gone:
                self._finish()
                return

    def _finish(self) -> None:
        if not self._over:
            self._over = True
            self._end()

    def _lives(self, worker: str) -> bool:
        node = self._runner.clients.get(worker)
        return node is not None and node.state != "missing"

    def _index(self, worker: str) -> int:
        return int(self._runner.get_worker_index(worker))

    def _path(self, worker: str) -> Path:
        return Path(self._folder.name) / f"{self._index(worker)}.parquet"
