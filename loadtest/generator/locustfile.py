"""The load generator: a user of Locust that follows a plan, closed or open loop, and records every request raw.

By hand, with Locust's web page, against any server of the Open Inference Protocol v2:

    locust -f loadtest/generator/locustfile.py --web-host 127.0.0.1 --host http://127.0.0.1:8000 [--rate 50]

The page has no login: every client that reaches it can start and stop tests. It listens on 127.0.0.1 unless --web-host
says otherwise, and sets neither files nor the server's address (`loadtest.generator.web_page`). With --samples FILE,
the second test of a page writes its record beside that of the first: samples.parquet, samples-2.parquet.

With `--processes`, or with `--master` and `--worker` on one or several machines, the same test is made by several
processes, and the master writes the one record. Master and workers have no login and no encryption: they exchange
msgpack messages with any host that connects. Bind the master's port by --master-bind-host to 127.0.0.1 for
--processes, and to an address of a trusted network for workers on other machines.

Started by the program, the plan is the file named by MEDSERVE_LOAD. Users talk through the connections and the parser
of FastHttpUser, with requests that are bytes beforehand: building each one anew costs as much as all the rest.
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

from loadtest.generator import payload, web_page
from loadtest.generator.connections import BLOCK_BYTES, Connections, InFlightRequest, TimedResponse
from loadtest.generator.distributed import Master, Worker, host
from loadtest.generator.load_test import LoadTest, Share, arrivals
from loadtest.generator.payload import Load
from loadtest.samples import MAX_IN_FLIGHT
from medserve import process, store, wire
from medserve.errors import BadInput, CannotRun
from medserve.spec import LoadProfile
from medserve.timing import now

PLAN = "MEDSERVE_LOAD"
HEADERS = (wire.HEAD_LENGTH, wire.SERVER_TIMING, wire.CLOCK)
SPIN_NS = 2_000_000
"""Nanoseconds before an arrival at which sleeping ends: the event loop's timers have a resolution of milliseconds."""
FAILURE_PAUSE_SECONDS = 0.05
"""Pause of a closed loop after a failure: refusals come at once, and would fill the record."""
MANUAL_SECONDS = 3600.0
"""Seconds of a test without a plan and without --run-time."""

process.die_with_parent()
IMPORTED_BY = os.getpid()
# While greenlets are busy, gevent polls for input once per switch interval; the default is 5 ms.
sys.setswitchinterval(20e-6)

current: LoadTest | None = None
refusal = "it got no plan"
link: Worker | Master | None = None
tests_started = 0
"""Tests that this process has started."""


class Client(FastHttpUser):
    """A user: one closed loop, or the arrival schedule of its process."""

    @task
    def go(self) -> None:
        """Wait for the start, send until the end; the last user of a process to finish ends its test."""
        _join(self.environment)
        if current is None:
            if isinstance(link, Worker):
                link.failed(refusal)
            raise StopUser
        test = self.test = current
        number = test.started_users
        if number == 0:
            test.begin(_cpus(test.load, self.environment))
        test.started_users += 1
        test.active_users += 1
        by_schedule = test.load.profile.mode == "open-loop"
        if isinstance(link, Worker):
            link.ready(test)
        elif not test.share.ready():
            test.share.set(test.whole_share())
        share: Share = test.share.get()
        # All processes together keep to the bound, which lies below the server's.
        self.pool = Connections(test.load, test.connections, max(1, MAX_IN_FLIGHT // share.step) if by_schedule else 1)
        try:
            if not by_schedule:
                self.send_back_to_back(share, number)
            elif number == 0:
                self.send_by_schedule(share)
        finally:
            self.pool.close()
        test.active_users -= 1
        if test.active_users == 0:
            if isinstance(link, Worker):
                link.finished()
            else:
                _stop(self.environment)
        raise StopUser

    def send_back_to_back(self, share: Share, number: int) -> None:
        """Send each request when the one before it was answered and the gap is over; at least one after the warm-up."""
        test = self.test
        profile, count = test.load.profile, test.count
        _sleep_until(share.start)
        begin = share.start + round(profile.warmup_seconds * 1e9)
        end = begin + round(profile.seconds * 1e9)
        request = share.first + number
        sent = 0
        # Each user judges by its own pace: all go on, or about all.
        while (at := now()) < end or not sent or profile.goes_on(sent * profile.users, (at - begin) / 1e9):
            sent += at >= begin
            answered = self.send(request % count)
            if pause := profile.gap_seconds if answered else max(profile.gap_seconds, FAILURE_PAUSE_SECONDS):
                gevent.sleep(pause if profile.requests else min(pause, max(0, end - now()) / 1e9))
            request += share.step
        if test.load.audit is not None:
            test.timed_requests = len(test.records)
            end = now() + round(test.load.timeout_seconds * 1e9)
            for request in range(count, len(test.requests)):
                if now() < end:
                    self.send(request)

    def send_by_schedule(self, share: Share) -> None:
        """Send each request when it is due, answered or not those before it; then wait for the last answers."""
        test = self.test
        count, start, request = test.count, share.start, share.first
        in_flight = Group()
        try:
            for offset in share.offsets.data:
                due = start + offset
                _sleep_until(due - SPIN_NS)
                # Prepared as far as possible: when it is due, sending a request is one system call.
                sock, begun = self.pool.free(), None
                _spin_until(due)
                if sock is not None:
                    begun = InFlightRequest.send(sock, test.requests[request % count])
                in_flight.spawn(self.send, request % count, due, begun)
                request += share.step
            in_flight.join(timeout=test.load.timeout_seconds)
            test.timed_out = True
        finally:
            in_flight.kill()

    def send(self, request: int, intended: int | None = None, begun: InFlightRequest | None = None) -> bool:
        """Send one request once, or the rest of one that has begun, and record it. Returns whether it was answered."""
        test, pool = self.test, self.pool
        note = test.records.note
        connection = sent = sock = answer = None
        try:
            if begun is None:
                begun = InFlightRequest.send(pool.get_socket(), test.requests[request])
            sock, sent = begun.sock, begun.sent
            connection = pool.numbers[sock.fileno()]
            if begun.error is not None:
                raise begun.error
            if begun.rest:
                sock.sendall(begun.rest)
            # From here on the response returns the connection to the pool, also when it fails.
            held, sock = sock, None
            answer = TimedResponse(held, pool, method="POST", block_size=BLOCK_BYTES)
            body = answer.read()
            done = now()
        except (Exception, gevent.GreenletExit) as error:  # any error is the result of the request
            done = now()
            if sock is not None:
                pool.release_socket(sock)
            if isinstance(error, gevent.GreenletExit) and not test.timed_out:
                raise
            first_byte = None if answer is None else answer.first_byte
            reason = f"{type(error).__name__}: {error}"
            if test.timed_out:
                reason = f"no answer within {test.load.timeout_seconds:g} s of the end"
            note(request, 0, connection, intended, sent, first_byte, done, reason)
            elapsed = done - (intended or sent or done)
            test.fire(response_time=elapsed / 1e6, response_length=0, exception=reason)
            return False
        status, info = answer.get_code(), answer.info()
        failure = None if status == 200 else f"HTTP {status}: {body[:200].decode(errors='replace')}"
        head_length, timing, clock = (_joined(info.get(name)) for name in HEADERS)
        compared = body if test.load.expected is not None else None
        stamps = intended, sent, answer.first_byte, done
        note(request, status, connection, *stamps, failure, head_length, timing, clock, compared)
        test.fire(response_time=(done - (intended or sent)) / 1e6, response_length=len(body), exception=failure)
        return True


def _cpus(load: Load, environment: Environment) -> tuple[int, ...]:
    """The cores of this process: those of the plan, one per worker; none on another host than the plan's."""
    if not isinstance(link, Worker) or not load.cpus:
        return load.cpus
    index = environment.runner.worker_index
    return (load.cpus[index % len(load.cpus)],) if environment.parsed_options.medserve_host == host() else ()


def _stop(environment: Environment) -> None:
    """End the test, and with it a headless Locust."""
    gevent.spawn(environment.runner.stop if environment.web_ui else environment.runner.quit)


def _sleep_until(due: int) -> None:
    if (left := due - now()) > 0:
        gevent.sleep(left / 1e9)


def _spin_until(due: int) -> None:
    while now() < due:
        # Unlike sleep(0) this polls for input every time, so that answers are stamped when they arrive;
        # the priority is the highest, so that many answers do not delay the next request.
        gevent.idle(priority=2)


@events.init_command_line_parser.add_listener
def _options(parser: Any) -> None:
    parser.set_defaults(web_host=web_page.ADDRESS)
    said = f"The web page listens on {web_page.ADDRESS} unless --web-host names another address."
    add = parser.add_argument_group("medserve", said).add_argument
    add("--model", default="", help="Model to ask; the server's only one when not given.")
    add("--rate", type=float, default=0.0, help="Requests per second, by arrival schedule; 0: users back to back.")
    add("--arrivals", choices=["constant", "poisson", "bursts"], default="constant", help="How they arrive.")
    add("--burst", type=int, default=1, help="Requests that arrive together, with bursts.")
    add("--trace", default="", help="Text file of arrival times in seconds, instead of a rate.")
    add("--gap", type=float, default=0.0, help="Seconds that a user waits after an answer.")
    add("--batch", type=int, default=1, help="Images per request.")
    add("--samples", default="", help="Parquet file for the raw record.")


@events.init.add_listener
def _init(environment: Environment, **_: Any) -> None:
    if os.getpid() != IMPORTED_BY:
        # A process that Locust forked does not inherit the setting to die with its parent.
        os.environ[process.PARENT] = str(IMPORTED_BY)
        process.die_with_parent()
    _join(environment)
    options = environment.parsed_options
    if environment.web_ui:
        web_page.guard(environment.web_ui.app, environment.web_ui.host, environment.host)
    if options.headless:
        # The plan has its own end; Locust's would cut off the last answers.
        options.medserve_seconds, options.run_time = options.run_time, None
        if options.master and (options.rate or options.trace):
            options.num_users = options.spawn_rate = max(options.num_users or 1, options.expect_workers)


def _join(environment: Environment) -> None:
    """Connect to the other processes, if any; a worker may be told to start before its init event."""
    global link
    runner = environment.runner
    if link is None and isinstance(runner, WorkerRunner):
        link = Worker(runner)
    elif link is None and isinstance(runner, MasterRunner):
        link = Master(runner, partial(_stop, environment))


@events.test_start.add_listener
def _begin(environment: Environment, **_: Any) -> None:
    global current, refusal, tests_started
    options = environment.parsed_options
    tests_started += 1
    try:
        if options.worker:
            load = msgspec.json.decode(options.medserve_plan, type=Load)
            current = LoadTest(load, environment.events.request.fire)
            return
        plan = os.environ.get(PLAN)
        load = store.read_json(Path(plan), Load) if plan else _manual_load(environment.host or "", options)
        if isinstance(link, Master):
            link.begin(load)
            # Locust sends the options to every worker with the start message.
            options.medserve_plan, options.medserve_host = msgspec.json.encode(load).decode(), host()
        else:
            current = LoadTest(load, environment.events.request.fire, arrivals(load))
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
    except Exception as error:  # Locust would log it and leave with exit code 0
        reason = f"the record could not be written: {error}"
        if isinstance(link, Worker):
            link.failed(reason)
        print(f"error: {reason}", file=sys.stderr)
        environment.process_exit_code = 1


@events.quitting.add_listener
def _leave(environment: Environment, **_: Any) -> None:
    """Write the records of a master whose workers are all gone: it has no test left to stop."""
    if isinstance(link, Master):
        _end(environment)


def _manual_load(url: str, options: Namespace) -> Load:
    model, shape = payload.describe(url.rstrip("/"), options.model or None)
    trace = str(Path(options.trace).resolve()) if options.trace else None
    profile = LoadProfile(
        name="manual",
        mode="open-loop" if options.rate > 0 or trace else "closed-loop",
        batch=options.batch,
        users=options.num_users or 1,
        rate=options.rate or None,
        arrivals="trace" if trace else options.arrivals,
        burst=options.burst,
        trace=trace,
        gap_seconds=options.gap,
        seconds=float(getattr(options, "medserve_seconds", None) or options.run_time or MANUAL_SECONDS),
        warmup_seconds=0.0,
    )
    out = Path(options.samples) if options.samples else None
    if out is not None and tests_started > 1:
        out = out.with_stem(f"{out.stem}-{tests_started}")
    return Load(url=url.rstrip("/"), model=model, profile=profile, shape=shape, out=str(out) if out else None)


def _joined(value: str | list[str] | None) -> str | None:
    return ", ".join(value) if isinstance(value, list) else value
