"""A cheap closed-loop client that never sleeps: the same bytes again and again, on one connection or several."""

import selectors
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from loadtest.benchmark.poller import Exchange
from loadtest.generator.payload import TIMEOUT_SECONDS
from medserve.errors import CannotRun
from medserve.timing import gc_paused, now


class Block(NamedTuple):
    """int64 nanoseconds of each request, requests per second, and the body of the last answer."""

    latencies: NDArray[np.int64]
    per_second: float
    body: bytes


def closed_loop(url: str, request: bytes, connections: int, count: int) -> Block:
    """Send `count` requests; each connection sends its next one when it has the answer to its last.

    Raises CannotRun when an answer is not a 200.
    """
    parts = urlsplit(url)
    latencies = np.zeros(count, np.int64)
    selector = selectors.DefaultSelector()
    sent_at: dict[int, int] = {}
    sent = answered = 0
    try:
        with gc_paused():
            start = heard = now()
            for _ in range(min(connections, count)):
                exchange = Exchange((parts.hostname or "", parts.port or 80))
                selector.register(exchange.socket, selectors.EVENT_READ, exchange)
                sent_at[sent] = now()
                _send(exchange, sent, request)
                sent += 1
            while answered < count:
                # Without sleeping: the wake-up of a core is no cost of the server, and would mask most of its cost.
                ready = selector.select(0)
                if not ready and now() > heard + TIMEOUT_SECONDS * 1e9:
                    raise CannotRun(f"{url} has not answered for {TIMEOUT_SECONDS:g} s")
                for key, _ in ready:
                    exchange = key.data
                    if (status := exchange.pull()) is None:
                        continue
                    heard = time = now()
                    latencies[exchange.row] = time - sent_at.pop(exchange.row)
                    answered += 1
                    if status != 200:
                        raise CannotRun(f"{url} answered {exchange.answer[:500].decode(errors='replace')!r}")
                    if sent < count:
                        sent_at[sent] = time
                        _send(exchange, sent, request)
                        sent += 1
            seconds = (now() - start) / 1e9
    finally:
        for key in list(selector.get_map().values()):
            key.data.socket.close()
        selector.close()
    return Block(latencies, count / seconds, exchange.answer.partition(b"\r\n\r\n")[2])


def whole_request(url: str, headers: dict[str, str], body: bytes) -> bytes:
    """The bytes of a POST request."""
    parts = urlsplit(url)
    lines = [f"{name}: {value}" for name, value in {**headers, "Content-Length": str(len(body))}.items()]
    return "\r\n".join([f"POST {parts.path} HTTP/1.1", f"Host: {parts.netloc}", *lines, "", ""]).encode() + body


def _send(exchange: Exchange, row: int, request: bytes) -> None:
    exchange.begin(row, request)
    while exchange.push():
        pass
