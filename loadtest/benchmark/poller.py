"""An independent client, of closed loops and, by `python -m loadtest.benchmark.poller LOAD.json`, of the open loop.

One thread that never sleeps, sockets that never block, a parser of its own, and no event loop. It shares with the load
generator what to send and when (`payload`, `schedule`) and the format of the record, but nothing that could delay it.
"""

import re
import selectors
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray

from loadtest import samples
from loadtest.generator import payload, schedule
from loadtest.generator.payload import Load
from medserve import errors, machine, store
from medserve.errors import CannotRun
from medserve.timing import gc_paused, now

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
CONNECTIONS = 32
"""Opened before the clock starts; more are opened when all of them are in use."""


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
            raise CannotRun("the server's answer has no Content-Length, which the independent client needs")
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

    def answers(self) -> Iterator[tuple[Exchange, int]]:
        """The exchanges that are complete by now, and their status, without waiting for others."""
        for key, _ in self._selector.select(0):
            if (status := key.data.pull()) is not None:
                yield key.data, status


def open_loop(
    address: tuple[str, int], requests: Sequence[bytes], offsets: NDArray[np.int64], timeout_seconds: float
) -> NDArray[np.int64]:
    """Send by the schedule `offsets` (ns), taking `requests` in turn, without ever sleeping.

    Returns int64 (n, 4): intended, sent, done, status; status is 0 where no answer came within `timeout_seconds`.
    """
    rows = np.zeros((len(offsets), 4), np.int64)
    unsent: list[Exchange] = []
    sent = answered = 0
    with Connections(address) as connections, gc_paused():
        idle = [connections.open() for _ in range(CONNECTIONS)]
        start = now()
        due = (start + offsets).tolist()
        end = due[-1] + round(timeout_seconds * 1e9)
        while answered < len(due) and (at := now()) < end:
            if sent < len(due) and at >= due[sent]:
                exchange = idle.pop() if idle else connections.open()
                rows[sent, :2] = due[sent], now()
                exchange.begin(sent, requests[sent % len(requests)])
                unsent.append(exchange)
                sent += 1
            if unsent:
                unsent = [exchange for exchange in unsent if exchange.push()]
            for exchange, status in connections.answers():
                rows[exchange.row, 2:] = now(), status
                idle.append(exchange)
                answered += 1
        rows[rows[:, 2] == 0, 2] = now()
    return rows


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
    """Send an open loop by the plan, and write the record that it names."""
    load = store.read_json(plan, Load)
    if load.out is None:
        raise errors.BadInput(f"{plan}: no 'out' for the record")
    machine.pin(load.cpus)
    chosen, requests = payload.requests(load)
    offsets = schedule.arrivals(load.profile, load.seed)
    rows = open_loop(payload.address_of(load.url), requests, offsets, load.timeout_seconds)
    used = chosen[np.arange(len(rows)) % len(chosen)]
    columns = {
        **dict(zip(("intended_ns", "sent_ns", "done_ns", "status"), rows.T, strict=True)),
        "image": used[:, 0],
        "batch": np.full(len(rows), load.profile.batch),
        "warmup": offsets < round(load.profile.warmup_seconds * 1e9),
    }
    samples.write(Path(load.out), columns, facts={"affinity": list(machine.usable_cpus())})


if __name__ == "__main__":
    errors.main(lambda: typer.run(poll))
