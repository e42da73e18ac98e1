"""An independent client of closed loops and, as `python -m loadtest.selftest.reference_client LOAD.json`, of open ones.

One thread, sockets that never block, a parser of its own, no event loop, no greenlets. It shares with the load
generator what to send and when (`payload`, `schedule`) and the format of the record, but nothing that could delay it.
"""

import re
import selectors
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import pyarrow as pa
import typer
from numpy.typing import NDArray

from loadtest import samples
from loadtest.generator import payload, schedule
from loadtest.generator.payload import Load
from loadtest.generator.records import Records
from medserve import errors, machine, store, wire
from medserve.errors import CannotRun
from medserve.timing import gc_paused, now

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
CHUNKED, LAST_CHUNK = re.compile(rb"transfer-encoding:[^\r]*chunked", re.IGNORECASE), b"\r\n0\r\n\r\n"
CONNECTIONS = 32
"""Opened before the clock starts; more are opened when all of them are in use."""
SPIN_NS = 2_000_000
"""Nanoseconds before an arrival at which a client that sleeps stops sleeping."""


class Exchange:
    """One connection, the request in flight on it, and the bytes of its `answer` so far."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.row = -1
        self._unsent = memoryview(b"")
        self.answer = b""

    def begin(self, row: int, request: bytes) -> None:
        """Send request number `row`, as much of it as the socket takes."""
        self.row, self._unsent, self.answer = row, memoryview(request), b""
        self.push()

    def push(self) -> bool:
        """Send what is left. Returns whether anything still is."""
        with suppress(BlockingIOError):
            self._unsent = self._unsent[self.socket.send(self._unsent) :]
        return bool(self._unsent)

    def pull(self) -> int | None:
        """Receive what has arrived. Returns the status when the answer is complete."""
        part = self.socket.recv(1 << 16)
        if not part:
            raise CannotRun("the server closed a connection of the independent client")
        self.answer += part
        end = self.answer.find(b"\r\n\r\n")
        if end < 0:
            return None
        length = LENGTH.search(self.answer[: end + 2])
        if length is None:
            if not CHUNKED.search(self.answer[: end + 2]):
                raise CannotRun("the server's answer has no length, which the independent client needs")
            return int(self.answer[9:12]) if self.answer.endswith(LAST_CHUNK) else None
        return int(self.answer[9:12]) if len(self.answer) >= end + 4 + int(length[1]) else None


class Connections(ExitStack):
    """Connections to `address`, closed with the block."""

    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__()
        self._address = address
        self._selector = self.enter_context(selectors.DefaultSelector())

    def open(self) -> Exchange:
        """One more connection."""
        exchange = Exchange(self._address)
        self.enter_context(exchange.socket)
        self._selector.register(exchange.socket, selectors.EVENT_READ, exchange)
        return exchange

    def answers(self, seconds: float = 0.0) -> Iterator[tuple[Exchange, int]]:
        """The exchanges that are complete, and their status; where nothing has come, the first within `seconds`."""
        for key, _ in self._selector.select(seconds):
            if (status := key.data.pull()) is not None:
                yield key.data, status


def open_loop(load: Load, sleeps: bool = False) -> pa.Table:
    """Send an open loop by its plan. Returns the record, with the columns of `samples.SCHEMA`.

    Without `sleeps` it never waits in the kernel. With it, it waits there as long as nothing is due within SPIN_NS, so
    that its latencies hold what any client pays that sleeps: the wake-up of its core.
    """
    chosen, requests = payload.requests(load)
    offsets = schedule.arrivals(load.profile, load.seed)
    sent: list[int] = []
    answers: dict[int, tuple[int, int, bytes]] = {}
    unsent: list[Exchange] = []
    with Connections(payload.address_of(load.url)) as connections, gc_paused():
        idle = [connections.open() for _ in range(CONNECTIONS)]
        start = now()
        due = (start + offsets).tolist()
        end = due[-1] + round(load.timeout_seconds * 1e9)
        while len(answers) < len(due) and (at := now()) < end:
            row = len(sent)
            if row < len(due) and at >= due[row]:
                exchange = idle.pop() if idle else connections.open()
                sent.append(now())
                exchange.begin(row, requests[row % len(requests)])
                unsent.append(exchange)
            if unsent:
                unsent = [exchange for exchange in unsent if exchange.push()]
            wait = (due[len(sent)] if len(sent) < len(due) else end) - SPIN_NS - now()
            for exchange, status in connections.answers(wait / 1e9 if sleeps and not unsent and wait > 0 else 0.0):
                answers[exchange.row] = now(), status, exchange.answer
                idle.append(exchange)
        given_up = now()
    records = Records()
    for row, at in enumerate(sent):
        done, status, answer = answers.get(row, (given_up, 0, b""))
        error = None if status else f"no answer within {load.timeout_seconds:g} s of the end"
        timing, clock = _headers(answer)
        records.note(row % len(requests), status, None, due[row], at, None, done, error, None, timing, clock)
    measured_from = start + round(load.profile.warmup_seconds * 1e9)
    return pa.concat_tables(list(records.tables(chosen, measured_from=measured_from)))


def _headers(answer: bytes) -> list[str | None]:
    """The server's stages and clock, null where it sends none."""
    lines = answer.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
    known = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return [known.get(name.lower()) for name in (wire.SERVER_TIMING, wire.CLOCK)]


class Block(NamedTuple):
    """A closed loop: int64 nanoseconds of each request, requests per second, and the body of the last answer."""

    latencies: NDArray[np.int64]
    per_second: float
    body: bytes


def closed_loop(url: str, request: bytes, users: int, count: int) -> Block:
    """Send `count` times the same request; each user, on a connection, sends the next when it has its answer.

    It does not sleep: the wake-up of a core is no cost of the server, and would mask most of its cost. Raises CannotRun
    when an answer is not a 200, or none comes for TIMEOUT_SECONDS.
    """
    stamps = np.zeros((count, 2), np.int64)
    sent = answered = 0
    with Connections(payload.address_of(url)) as connections, gc_paused():
        idle = [connections.open() for _ in range(min(users, count))]
        start = heard = now()
        while answered < count:
            while idle and sent < count:
                exchange = idle.pop()
                stamps[sent, 0] = now()
                exchange.begin(sent, request)
                while exchange.push():
                    pass
                sent += 1
            for exchange, status in connections.answers():
                stamps[exchange.row, 1] = heard = now()
                if status != 200:
                    raise CannotRun(f"{url} answered {exchange.answer[:500].decode(errors='replace')!r}")
                idle.append(exchange)
                answered += 1
            if now() > heard + payload.TIMEOUT_SECONDS * 1e9:
                raise CannotRun(f"{url} has not answered for {payload.TIMEOUT_SECONDS:g} s")
    return Block(stamps[:, 1] - stamps[:, 0], count / (heard - start) * 1e9, exchange.answer.partition(b"\r\n\r\n")[2])


def poll(plan: Annotated[Path, typer.Argument(metavar="LOAD.json", help="The same plan that Locust gets.")]) -> None:
    """Send an open loop by the plan without ever sleeping, and write the record that it names."""
    load = store.read_json(plan, Load)
    if load.out is None:
        raise errors.BadInput(f"{plan}: no 'out' for the record")
    machine.pin(load.cpus)
    samples.write_tables(Path(load.out), [open_loop(load)], facts={"affinity": list(machine.usable_cpus())})


if __name__ == "__main__":
    errors.main(lambda: typer.run(poll))
