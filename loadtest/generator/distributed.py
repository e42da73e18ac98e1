"""A load test in several processes, on one machine or many, with Locust's own master and workers.

The messages beyond Locust's: a worker reports its waiting users; when all users wait, the master sends each worker its
share and the start; a worker reports that it has finished; told to stop, it sends its record in chunks. The plan is one
of the options, which Locust sends to each worker.
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
from loadtest.generator import payload
from loadtest.generator.load_test import LoadTest, Share, arrivals
from loadtest.generator.payload import Load
from loadtest.generator.records import WorkerRecord, merge
from medserve.errors import BadInput
from medserve.timing import now

START_DELAY = 200_000_000
"""Nanoseconds from sending the shares to the start, so that the messages arrive before it."""
CHUNK_BYTES = 1 << 20
"""Bytes of a record per message."""
SILENT_SECONDS = 3.0
"""Seconds without a sign of life from any worker after which the master stops waiting for records."""
CHECK_SECONDS = 0.5
"""Pause between two checks that all workers are alive."""
RECORD_SECONDS = 600.0
"""Seconds that a worker may take to compute and send its record."""


def host() -> str:
    """The machine and its boot: equal for processes that share the monotonic clock."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return f"{socket.gethostname()} {boot}"


class Worker:
    """The worker's side."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._test: LoadTest | None = None
        runner.register_message("medserve_share", self._on_share)

    def ready(self, test: LoadTest) -> None:
        """Report that one more user of the test waits for the start."""
        self._test = test
        self._send("ready", users=test.started_users)

    def finished(self) -> None:
        """Report that all users have finished."""
        self._send("finished")

    def failed(self, reason: str) -> None:
        """Report that there will be no record of this worker."""
        self._send("failed", reason=reason)

    def deliver(self, test: LoadTest) -> None:
        """Send the record of a test to the master."""
        facts = test.end()
        if len(test.records):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "samples.parquet"
                # In a thread, so that heartbeats go on meanwhile.
                gevent.get_hub().threadpool.apply(test.write_record, (path, facts))
                with path.open("rb") as file:
                    while chunk := file.read(CHUNK_BYTES):
                        self._send("record", chunk=chunk)
        self._send("record", start=test.start, host=host(), facts=facts)

    def _send(self, kind: str, **data: Any) -> None:
        self._runner.send_message(f"medserve_{kind}", data)

    def _on_share(self, msg: Any, **_: Any) -> None:
        data = msg.data
        start = data["start"] if data["host"] == host() else now() + START_DELAY
        if self._test is not None:
            self._test.share.set(Share(start, data["first"], data["step"], np.frombuffer(data["offsets"], np.int64)))


class Master:
    """The master's side: it sends no requests; it distributes them and merges the records.

    `end` ends the test; it is called once per test.
    """

    def __init__(self, runner: Any, end: Callable[[], None]) -> None:
        self._runner = runner
        self._end = end
        self._load: Load | None = None
        for kind in ("ready", "finished", "failed", "record"):
            runner.register_message(f"medserve_{kind}", getattr(self, f"_on_{kind}"))

    def begin(self, load: Load) -> None:
        """Prepare a test. Raises BadInput for one that several processes cannot make."""
        if load.audit is not None:
            raise BadInput("an audit needs a single process; remove 'audit', or --processes and --master")
        payload.check(load)
        self._offsets = arrivals(load)
        self._load = load
        self._ended = False
        self._start: int | None = None
        self._workers = set(self._runner.clients)
        self._users: dict[str, int] = {}
        self._with_share: set[str] = set()
        self._finished: set[str] = set()
        self._delivered: dict[str, dict[str, Any]] = {}
        self._reasons: dict[str, str] = {}
        self._folder = tempfile.TemporaryDirectory()
        self._watcher = gevent.spawn(self._watch)

    def gather(self) -> None:
        """Stop the workers, wait for their records and write them as one. Does nothing without a test.

        Each missing record is a line on stderr, and makes Locust leave with exit code 1.
        """
        load, self._load = self._load, None
        if load is None:
            return
        self._watcher.kill(block=False)
        with self._folder:
            # The calling greenlet may be the runner's own, which receives the records: it cannot wait for them.
            if gevent.getcurrent() not in self._runner.greenlet:
                self._collect()
            for worker in self._workers - self._delivered.keys():
                self._reasons.setdefault(worker, "ended before its record arrived; the record of the others is kept")
            if load.out is not None and self._delivered:
                self._write(Path(load.out))
        for worker, reason in self._reasons.items():
            print(f"error: worker {self._index(worker)} ({worker.rpartition('_')[0]}): {reason}", file=sys.stderr)
            self._runner.environment.process_exit_code = 1

    def _collect(self) -> None:
        self._runner.send_message("stop")
        since = last_sign = time.monotonic()
        while missing := self._workers - self._delivered.keys() - self._reasons.keys():
            if any(map(self._lives, missing)):
                last_sign = time.monotonic()
            if time.monotonic() > min(last_sign + SILENT_SECONDS, since + RECORD_SECONDS):
                break
            gevent.sleep(0.05)

    def _write(self, out: Path) -> None:
        records = []
        for worker in sorted(self._delivered, key=self._index):
            start, there, facts = (self._delivered[worker][name] for name in ("start", "host", "facts"))
            if self._path(worker).is_file():
                table = samples.read(self._path(worker))
                records.append(WorkerRecord(table, start, there.partition(" ")[0], there == host(), facts))
        if records:
            table, facts = merge(records, self._start or 0)
            samples.write_tables(out, [table], facts=facts)

    def _on_ready(self, msg: Any, **_: Any) -> None:
        worker = msg.node_id
        self._workers.add(worker)
        self._users[worker] = msg.data["users"]
        expected_users = self._runner.target_user_count
        if self._start is None and sum(self._users.values()) >= expected_users:
            self._start = now() + START_DELAY
            before, count = 0, len(self._users)
            for number, each in enumerate(sorted(self._users, key=self._index)):
                first, step = (number, count) if len(self._offsets) else (before, expected_users)
                self._send_share(each, first, step, self._offsets[number::count])
                before += self._users[each]
        elif self._start is not None and worker not in self._with_share:
            # A late worker takes part in a closed loop; an open loop has no arrivals left for it.
            self._send_share(worker, expected_users, expected_users, self._offsets[:0])

    def _send_share(self, worker: str, first: int, step: int, offsets: Any) -> None:
        self._with_share.add(worker)
        data = {"start": self._start, "host": host(), "first": first, "step": step, "offsets": offsets.tobytes()}
        self._runner.send_message("medserve_share", data, worker)

    def _on_finished(self, msg: Any, **_: Any) -> None:
        self._finished.add(msg.node_id)
        if self._finished >= self._with_share:
            self._finish()

    def _on_failed(self, msg: Any, **_: Any) -> None:
        if msg.node_id not in self._delivered:
            self._reasons[msg.node_id] = msg.data["reason"]
            self._finish()

    def _on_record(self, msg: Any, **_: Any) -> None:
        if "chunk" not in msg.data:
            self._delivered[msg.node_id] = msg.data
        else:
            with self._path(msg.node_id).open("ab") as file:
                file.write(msg.data["chunk"])

    def _watch(self) -> None:
        """End the test when a worker dies: what is left is not the load of the plan."""
        while True:
            gevent.sleep(CHECK_SECONDS)
            gone = [worker for worker in self._workers - self._delivered.keys() if not self._lives(worker)]
            for worker in gone:
                self._reasons[worker] = "died during the test; the record of the others is kept"
            if gone:
                self._finish()
                return

    def _finish(self) -> None:
        if not self._ended:
            self._ended = True
            self._end()

    def _lives(self, worker: str) -> bool:
        node = self._runner.clients.get(worker)
        return node is not None and node.state != "missing"

    def _index(self, worker: str) -> int:
        return int(self._runner.get_worker_index(worker))

    def _path(self, worker: str) -> Path:
        return Path(self._folder.name) / f"{self._index(worker)}.parquet"
