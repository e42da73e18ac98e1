"""The load generator: two kinds of users for Locust, and the raw record of every request.

By hand, with Locust's web page, against any server of the Open Inference Protocol v2:

    locust -f loadtest/locustfile.py --host http://127.0.0.1:8000 [--rate 50] [--samples samples.parquet]

Started by the program, the plan is the file named by MEDSERVE_LOAD. Users talk through the connections and the parser
of FastHttpUser, with requests that are bytes beforehand: building each one anew costs as much as all the rest.
"""

import os
import socket
import sys
import time
from argparse import Namespace
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gevent
import numpy as np
from gevent.pool import Group
from geventhttpclient.connectionpool import ConnectionPool
from geventhttpclient.response import HTTPSocketPoolResponse
from locust import FastHttpUser, events, task
from locust.env import Environment
from locust.exception import StopTest, StopUser

from loadtest import payload, samples, schedule
from loadtest.payload import Load
from loadtest.samples import Record
from medserve import machine, process, store, wire
from medserve.errors import BadInput, CannotRun
from medserve.spec import LoadProfile
from medserve.timing import now, quiet_collector

PLAN = "MEDSERVE_LOAD"
HEADERS = (wire.HEAD_LENGTH, wire.SERVER_TIMING, wire.CLOCK)
CONNECTIONS = 1000
"""Requests in flight at once; select(2), by which geventhttpclient looks at an idle connection, ends at 1024."""
BLOCK = 1 << 16
NEAR = 2_000_000
"""Nanoseconds before an arrival at which sleeping ends: the event loop's timers count milliseconds."""
BY_HAND = 3600.0
"""Seconds of a test by hand that has no --run-time."""

process.die_with_parent()
# While greenlets keep one another busy, gevent looks for input once in a switch interval; 5 ms is the default.
sys.setswitchinterval(20e-6)


class Test:
    """One test: its plan, its requests, and what came back."""

    def __init__(self, load: Load, environment: Environment) -> None:
        machine.pin(load.cpus)
        self.load = load
        self.chosen, self.requests = payload.requests(load)
        self.records: list[Record] = []
        self.connections = 0
        self.active = 0
        self.late = False
        self.start: int | None = None
        self.name = f"{load.model} {load.profile.batch} x {load.profile.mode}"
        self.fire = environment.events.request.fire
        self._environment = environment
        self._measuring = ExitStack()
        self._measuring.enter_context(quiet_collector())
        self._cpu = time.process_time()

    def begin(self) -> tuple[int, int]:
        """Called by each user: nanoseconds of the common start and end."""
        self.active += 1
        if self.start is None:
            self.start = now()
        profile = self.load.profile
        return self.start, self.start + round((profile.warmup_seconds + profile.seconds) * 1e9)

    def end(self) -> None:
        """Called by each user when it is done; the last one ends the test."""
        self.active -= 1
        if self.active == 0:
            runner = self._environment.runner
            assert runner is not None
            gevent.spawn(runner.stop if self._environment.web_ui else runner.quit)

    def close(self) -> None:
        """Work the record out and write it."""
        cpu_seconds = time.process_time() - self._cpu
        self._measuring.close()
        load = self.load
        if load.out is None or not self.records:
            return
        expected = None if load.expected is None else np.load(load.expected)
        measured_from = (self.start or 0) + round(load.profile.warmup_seconds * 1e9)
        facts = {
            "affinity": list(machine.usable_cpus()),
            "connections": self.connections,
            "cpu_seconds": cpu_seconds,
            "distinct_requests": len(self.requests),
            "versions": machine.versions("locust", "gevent", "geventhttpclient"),
        }
        columns = samples.from_records(self.records, self.chosen, expected, measured_from)
        samples.write(Path(load.out), columns, facts=facts)


class Connections(ConnectionPool):
    """The connections of one user: kept alive, without Nagle's delay, numbered as they are opened."""

    def __init__(self, test: Test, size: int) -> None:
        address = payload.split(test.load.url)
        host, port, patience = address.hostname or "", address.port or 80, test.load.patience
        super().__init__(host, port, host, port, size, network_timeout=patience, connection_timeout=patience)
        self._test = test
        self.numbers: dict[int, int] = {}

    def after_connect(self, sock: Any) -> None:
        """Called by the pool with a new connection."""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.numbers[sock.fileno()] = self._test.connections
        self._test.connections += 1


class Answer(HTTPSocketPoolResponse):
    """A response that knows when its first byte was there."""

    first_byte: int | None = None

    def _on_message_begin(self) -> None:
        self.first_byte = now()
        super()._on_message_begin()


class _User(FastHttpUser):
    abstract = True
    size = 1

    def on_start(self) -> None:
        assert current is not None
        self.test: Test = current
        self.pool = Connections(self.test, self.size)

    def on_stop(self) -> None:
        self.pool.close()

    def send(self, request: int, intended: int | None = None) -> bool:
        """One request, once, whatever becomes of it. Says whether there was an answer."""
        test, pool = self.test, self.pool
        connection = sent = sock = answer = None
        try:
            sock = pool.get_socket()
            connection = pool.numbers[sock.fileno()]
            sent = now()
            sock.sendall(test.requests[request])
            # From here on the answer gives the connection back, be it whole or broken.
            held, sock = sock, None
            answer = Answer(held, pool, method="POST", block_size=BLOCK)
            body = answer.read()
            done = now()
        except (Exception, gevent.GreenletExit) as error:  # whatever happens to a request is its result
            done = now()
            if sock is not None:
                pool.release_socket(sock)
            if isinstance(error, gevent.GreenletExit) and not test.late:
                raise
            first_byte = None if answer is None else answer.first_byte
            reason = f"{type(error).__name__}: {error}"
            if test.late:
                reason = f"no answer within {test.load.patience:g} s of the end"
            test.records.append(Record(request, 0, connection, intended, sent, first_byte, done, reason))
            self._tell_locust(done - (intended or sent or done), 0, reason)
            return False
        status, info = answer.get_code(), answer.info()
        failure = None if status == 200 else f"HTTP {status}: {body[:200].decode(errors='replace')}"
        head_length, timing, clock = (_one(info.get(name)) for name in HEADERS)
        kept = body if test.load.expected is not None else None
        stamps = intended, sent, answer.first_byte, done
        test.records.append(Record(request, status, connection, *stamps, failure, head_length, timing, clock, kept))
        self._tell_locust(done - (intended or sent), len(body), failure)
        return True

    def _tell_locust(self, nanoseconds: int, size: int, error: str | None) -> None:
        self.test.fire(
            request_type="POST",
            name=self.test.name,
            response_time=nanoseconds / 1e6,
            response_length=size,
            exception=error,
            context={},
        )


class ClosedLoop(_User):
    """Back to back: a request leaves when the one before it was answered."""

    abstract = False

    @task
    def go(self) -> None:
        """Send until the end."""
        test = self.test
        _, end = test.begin()
        request = test.active - 1
        count = len(test.requests)
        while now() < end:
            if not self.send(request % count):
                # A refusal comes at once; without a pause the record would hold nothing else.
                gevent.sleep(0.05)
            request += test.load.profile.users
        test.end()
        raise StopUser


class OpenLoop(_User):
    """By arrival schedule: a request leaves when it is due, whatever became of those before it."""

    abstract = False
    size = CONNECTIONS

    @task
    def go(self) -> None:
        """Send the schedule, then wait for the last answers."""
        test = self.test
        offsets = schedule.arrivals(test.load.profile, test.load.seed).tolist()
        count = len(test.requests)
        start, _ = test.begin()
        under_way = Group()
        try:
            for index, offset in enumerate(offsets):
                due = start + offset
                while (left := due - now()) > 0:
                    if left > NEAR:
                        gevent.sleep((left - NEAR) / 1e9)
                    else:
                        # Unlike sleep(0) it looks for input every time, so that answers are stamped when they come;
                        # the priority is the highest, so that a flood of answers does not hold up the next request.
                        gevent.idle(priority=2)
                under_way.spawn(self.send, index % count, due)
            under_way.join(timeout=test.load.patience)
            test.late = True
        finally:
            under_way.kill()
        test.end()
        raise StopUser


current: Test | None = None


@events.init_command_line_parser.add_listener
def _options(parser: Any) -> None:
    add = parser.add_argument_group("medserve").add_argument
    add("--model", default="", help="Model to ask; the server's only one when not given.")
    add("--rate", type=float, default=0.0, help="Requests a second, by arrival schedule; 0: users back to back.")
    add("--batch", type=int, default=1, help="Images a request.")
    add("--samples", default="", help="Parquet file for the raw record.")


@events.test_start.add_listener
def _begin(environment: Environment, **_: Any) -> None:
    global current
    options = environment.parsed_options
    assert options is not None
    plan = os.environ.get(PLAN)
    try:
        load = store.read_json(Path(plan), Load) if plan else _by_hand(environment.host or "", options)
        current = Test(load, environment)
    except (BadInput, CannotRun) as error:
        if environment.web_ui:
            raise StopTest(str(error)) from None
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    if not options.user_classes:
        environment.user_classes = [OpenLoop if load.profile.mode == "open-loop" else ClosedLoop]


@events.test_stop.add_listener
def _end(environment: Environment, **_: Any) -> None:
    global current
    test, current = current, None
    try:
        if test is not None:
            test.close()
    except Exception as error:  # Locust would log it and leave as if all were well
        print(f"error: the record could not be written: {error}", file=sys.stderr)
        environment.process_exit_code = 1


def _by_hand(url: str, options: Namespace) -> Load:
    model, shape = payload.describe(url.rstrip("/"), options.model or None)
    profile = LoadProfile(
        name="by-hand",
        mode="open-loop" if options.rate > 0 else "closed-loop",
        batch=options.batch,
        users=options.num_users or 1,
        rate=options.rate or None,
        seconds=float(options.run_time or BY_HAND),
        warmup_seconds=0.0,
    )
    return Load(url=url.rstrip("/"), model=model, profile=profile, shape=shape, out=options.samples or None)


def _one(value: str | list[str] | None) -> str | None:
    return ", ".join(value) if isinstance(value, list) else value
