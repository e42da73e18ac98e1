"""The connections and responses of FastHttpUser's own parser, with the stamps and numbers that are recorded of them."""

import socket
from typing import Any

from geventhttpclient.connectionpool import ConnectionPool
from geventhttpclient.response import HTTPSocketPoolResponse
from msgspec import Struct

from loadtest.generator import payload
from loadtest.generator.payload import Load
from medserve.timing import now

BLOCK_BYTES = 1 << 16
"""Bytes of one read."""


class ConnectionCounter:
    """The number of connections that a test has opened."""

    count = 0


class InFlightRequest(Struct):
    """A request whose sending has begun: when (ns), the bytes that the kernel did not take at once, and an error."""

    sock: Any
    sent: int
    rest: memoryview
    error: OSError | None = None

    @classmethod
    def send(cls, sock: Any, content: bytes) -> "InFlightRequest":
        """Send as many bytes as possible without waiting."""
        sent, rest = now(), memoryview(content)
        try:
            return cls(sock, sent, rest[sock.send(content, 0, 0.0) :])
        except BlockingIOError:
            return cls(sock, sent, rest)
        except OSError as error:
            return cls(sock, sent, rest, error)


class Connections(ConnectionPool):
    """The connections of one user: kept alive, without Nagle's delay, numbered in the order of opening."""

    def __init__(self, load: Load, counter: ConnectionCounter, size: int) -> None:
        (host, port), timeout = payload.address_of(load.url), load.timeout_seconds
        super().__init__(host, port, host, port, size, network_timeout=timeout, connection_timeout=timeout)
        self._counter = counter
        self._addresses: list[Any] = []
        self.numbers: dict[int, int] = {}

    def _resolve(self) -> list[Any]:
        # A look-up uses a thread, and would delay each request that needs another connection.
        self._addresses = self._addresses or super()._resolve()
        return self._addresses

    def free(self) -> Any | None:
        """An idle open connection; null when one would have to be opened or waited for."""
        if self._socket_queue.empty():
            return None
        # Each connection in the queue has a permit, so this does not wait.
        self._semaphore.acquire()
        sock = self._socket_queue.get(block=False)
        if self._is_socket_alive(sock):
            return sock
        self.release_socket(sock)
        return None

    def after_connect(self, sock: Any) -> None:
        """Called by the pool with a new connection."""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.numbers[sock.fileno()] = self._counter.count
        self._counter.count += 1


class TimedResponse(HTTPSocketPoolResponse):
    """A response that stamps the arrival of its first byte."""

    first_byte: int | None = None

    def _on_message_begin(self) -> None:
        self.first_byte = now()
        super()._on_message_begin()
