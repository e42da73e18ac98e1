"""The load generator: a user of Locust that follows a plan, closed loop or open, and records every request raw.

By hand, with Locust's web page, against any server of the Open Inference Protocol v2:

    locust -f loadtest/generator/locustfile.py --host http://127.0.0.1:8000 [--rate 50] [--samples samples.parquet]

With `--processes`, or with `--master` and `--worker` on one or several machines, the same test is made by several
processes, and the master writes the one record. Started by the program, the plan is the file named by MEDSERVE_LOAD.
Users talk through the connections and the parser of FastHttpUser, with requests that are bytes beforehand: building
each one anew costs as much as all the rest.
"""

import os
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import gevent
import msgspec
from gevent.pool import Group
from locust import FastHttpUser, events, task
from locust.env import Environment
from locust.exception import StopTest, StopUser
from locust.runners import MasterRunner, WorkerRunner

from loadtest.generator import payload
from loadtest.generator.connections import BLOCK, Answer, Begun, Connections
from loadtest.generator.distributed import Master, Worker, host
from loadtest.generator.load_test import Share, Test, arrivals
from loadtest.generator.payload import CONNECTIONS, Load
from medserve import process, store, wire
from medserve.errors import BadInput, CannotRun
from medserve.spec import LoadProfile
from medserve.timing import now

PLAN = "MEDSERVE_LOAD"
HEADERS = (wire.HEAD_LENGTH, wire.SERVER_TIMING, wire.CLOCK)
NEAR = 2_000_000
"""Nanoseconds before an arrival at which sleeping ends: the event loop's timers count milliseconds."""
REFUSED_SECONDS = 0.05
"""Pause of a closed loop after a failure: a refusal comes at once, and the record would hold nothing else."""
BY_HAND = 3600.0
"""Seconds of a test by hand that has no --run-time."""

process.die_with_parent()
IMPORTED_BY = os.getpid()
# While greenlets keep one another busy, gevent looks for input once in a switch interval; 5 ms is the default.
sys.setswitchinterval(20e-6)

current: Test | None = None
refusal = "it was not told what to do"
link: Worker | Master | None = None


class Client(FastHttpUser):
    """A user: one closed loop, or the arrival schedule of this process."""

    @task
    def go(self) -> None:
        """Wait for the start, send until the end; the last user of a process ends its test."""
        _join(self.environment)
        if current is None:
            if isinstance(link, Worker):
                link.failed(refusal)
            raise StopUser
        test = self.test = current
        number = test.begun
        if number == 0:
            test.measure(_cpus(test.load, self.environment))
        test.begun += 1
        test.active += 1
        by_schedule = test.load.profile.mode == "open-loop"
        self.pool = Connections(test.load, test.opened, CONNECTIONS if by_schedule else 1)
        try:
            if isinstance(link, Worker):
                link.ready(test)
            elif test.share is None:
                test.give(test.whole())
            share = test.wait()
            if not by_schedule:
                self.send_back_to_back(share, number)
            elif number == 0:
                self.send_by_schedule(share)
        finally:
            self.pool.close()
        test.active -= 1
        if test.active == 0:
            if isinstance(link, Worker):
                link.finished()
            else:
                _stop(self.environment)
        raise StopUser

    def send_back_to_back(self, share: Share, number: int) -> None:
        """A request leaves when the one before it was answered, and the gap is over."""
        test = self.test
        profile, count = test.load.profile, test.count
        _sleep_until(share.start)
        end = share.start + round((profile.warmup_seconds + profile.seconds) * 1e9)
        request = share.first + number
        while now() < end:
            answered = self.send(request % count)
            if pause := profile.gap_seconds if answered else max(profile.gap_seconds, REFUSED_SECONDS):
                gevent.sleep(min(pause, max(0, end - now()) / 1e9))
            request += share.step
        if test.load.audit is not None:
            test.timed = len(test.records)
            end = now() + round(test.load.patience * 1e9)
            for request in range(count, len(test.requests)):
                if now() < end:
                    self.send(request)

    def send_by_schedule(self, share: Share) -> None:
        """A request leaves when it is due, whatever became of those before it; then wait for the last answers."""
        test = self.test
        count, start, request = test.count, share.start, share.first
        under_way = Group()
        try:
            for offset in share.offsets.data:
                due = start + offset
                _sleep_until(due - NEAR)
                # All that can be done beforehand is: when it is due, a request leaves by one system call.
                sock, begun = self.pool.free(), None
                _watch_until(due)
                if sock is not None:
                    begun = Begun.send(sock, test.requests[request % count])
                under_way.spawn(self.send, request % count, due, begun)
                request += share.step
            under_way.join(timeout=test.load.patience)
            test.late = True
        finally:
            under_way.kill()

    def send(self, request: int, intended: int | None = None, begun: Begun | None = None) -> bool:
        """One request, once, whatever becomes of it, or what is left of it. Says whether there was an answer."""
        test, pool = self.test, self.pool
        note = test.records.note
        connection = sent = sock = answer = None
        try:
            if begun is None:
                sock = pool.get_socket()
                connection = pool.numbers[sock.fileno()]
                sent = now()
                sock.sendall(test.requests[request])
            else:
                sock, sent = begun.sock, begun.sent
                connection = pool.numbers[sock.fileno()]
                if begun.error is not None:
                    raise begun.error
                if begun.rest:
                    sock.sendall(begun.rest)
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
            note(request, 0, connection, intended, sent, first_byte, done, reason)
            self._tell_locust(done - (intended or sent or done), 0, reason)
            return False
        status, info = answer.get_code(), answer.info()
        failure = None if status == 200 else f"HTTP {status}: {body[:200].decode(errors='replace')}"
        head_length, timing, clock = (_one(info.get(name)) for name in HEADERS)
        kept = body if test.load.expected is not None else None
        stamps = intended, sent, answer.first_byte, done
        note(request, status, connection, *stamps, failure, head_length, timing, clock, kept)
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


def _cpus(load: Load, environment: Environment) -> tuple[int, ...]:
    """The cores of this process: those of the plan, of which each worker takes one; a plan knows its own host's."""
    if not isinstance(link, Worker) or not load.cpus:
        return load.cpus
    index = environment.runner.worker_index
    return (load.cpus[index % len(load.cpus)],) if environment.parsed_options.medserve_host == host() else ()


def _stop(environment: Environment) -> None:
    """End the test; headless Locust ends with it."""
    gevent.spawn(environment.runner.stop if environment.web_ui else environment.runner.quit)


def _sleep_until(due: int) -> None:
    if (left := due - now()) > 0:
        gevent.sleep(left / 1e9)


def _watch_until(due: int) -> None:
    while now() < due:
        # Unlike sleep(0) it looks for input every time, so that answers are stamped when they come;
        # the priority is the highest, so that a flood of answers does not hold up the next request.
        gevent.idle(priority=2)


@events.init_command_line_parser.add_listener
def _options(parser: Any) -> None:
    add = parser.add_argument_group("medserve").add_argument
    add("--model", default="", help="Model to ask; the server's only one when not given.")
    add("--rate", type=float, default=0.0, help="Requests a second, by arrival schedule; 0: users back to back.")
    add("--arrivals", choices=["constant", "poisson", "bursts"], default="constant", help="How they arrive.")
    add("--burst", type=int, default=1, help="Requests that arrive together, with bursts.")
    add("--trace", default="", help="Text file of arrival times in seconds, instead of a rate.")
    add("--gap", type=float, default=0.0, help="Seconds that a user rests after an answer.")
    add("--batch", type=int, default=1, help="Images a request.")
    add("--samples", default="", help="Parquet file for the raw record.")


@events.init.add_listener
def _init(environment: Environment, **_: Any) -> None:
    if os.getpid() != IMPORTED_BY:
        # What Locust forked does not inherit the promise to die with the parent.
        os.environ[process.PARENT] = str(IMPORTED_BY)
        process.die_with_parent()
    _join(environment)
    options = environment.parsed_options
    if options.headless:
        # The plan knows its end; Locust's own would cut the last answers off.
        options.medserve_seconds, options.run_time = options.run_time, None
        if options.master and (options.rate or options.trace):
            options.num_users = options.spawn_rate = max(options.num_users or 1, options.expect_workers)


def _join(environment: Environment) -> None:
    """Meet the other processes, where there are any; a worker may be told to start before it is told of that."""
    global link
    runner = environment.runner
    if link is None and isinstance(runner, WorkerRunner):
        link = Worker(runner)
    elif link is None and isinstance(runner, MasterRunner):
        link = Master(runner, partial(_stop, environment))


@events.test_start.add_listener
def _begin(environment: Environment, **_: Any) -> None:
    global current, refusal
    options = environment.parsed_options
    try:
        if options.worker:
            load = msgspec.json.decode(options.medserve_plan, type=Load)
            current = Test(load, environment.events.request.fire)
            return
        plan = os.environ.get(PLAN)
        load = store.read_json(Path(plan), Load) if plan else _by_hand(environment.host or "", options)
        if isinstance(link, Master):
            link.begin(load)
            # Locust hands the options to every worker with the order to start.
            options.medserve_plan, options.medserve_host = msgspec.json.encode(load).decode(), host()
        else:
            current = Test(load, environment.events.request.fire, arrivals(load))
    except (BadInput, CannotRun, msgspec.ValidationError) as error:
        refusal = str(error)
        if options.worker:
            return
        if environment.web_ui:
            raise StopTest(refusal) from None
        print(f"error: {refusal}", file=sys.stderr)
        sys.exit(1)


@events.test_stop.add_listener
def _end(environment: Environment, **_: Any) -> None:
    global current
    test, current = current, None
    try:
        if isinstance(link, Master):
            link.gather()
        elif isinstance(link, Worker):
            if test is not None:
                link.deliver(test)
            else:
                link.failed(refusal)
        elif test is not None:
            test.write()
    except Exception as error:  # Locust would log it and leave as if all were well
        said = f"the record could not be written: {error}"
        if isinstance(link, Worker):
            link.failed(said)
        print(f"error: {said}", file=sys.stderr)
        environment.process_exit_code = 1


@events.quitting.add_listener
def _leave(environment: Environment, **_: Any) -> None:
    """A master whose workers are all gone has no test left to stop, but records to write."""
    if isinstance(link, Master):
        _end(environment)


def _by_hand(url: str, options: Namespace) -> Load:
    model, shape = payload.describe(url.rstrip("/"), options.model or None)
    trace = str(Path(options.trace).resolve()) if options.trace else None
    profile = LoadProfile(
        name="by-hand",
        mode="open-loop" if options.rate > 0 or trace else "closed-loop",
        batch=options.batch,
        users=options.num_users or 1,
        rate=options.rate or None,
        arrivals="trace" if trace else options.arrivals,
        burst=options.burst,
        trace=trace,
        gap_seconds=options.gap,
        seconds=float(getattr(options, "medserve_seconds", None) or options.run_time or BY_HAND),
        warmup_seconds=0.0,
    )
    return Load(url=url.rstrip("/"), model=model, profile=profile, shape=shape, out=options.samples or None)


def _one(value: str | list[str] | None) -> str | None:
    return ", ".join(value) if isinstance(value, list) else value
