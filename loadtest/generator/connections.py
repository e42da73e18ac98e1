"""Connections and answers under FastHttpUser's own parser: what is measured of them is noted here."""

import socket
from typing import Any

from geventhttpclient.connectionpool import ConnectionPool
from geventhttpclient.response import HTTPSocketPoolResponse
from msgspec import Struct

from loadtest.generator import payload
from loadtest.generator.payload import Load
from medserve.timing import now

BLOCK = 1 << 16
"""Bytes that an answer is read by."""


class Opened:
    """How many connections a test has opened."""

    count = 0


class Begun(Struct):
    """A request that is under way: when it left (ns), and what the kernel did not take at once, or would not."""

    sock: Any
    sent: int
    rest: memoryview
    error: OSError | None = None

    @classmethod
    def send(cls, sock: Any, content: bytes) -> "Begun":
        """Send as much as goes without waiting."""
        sent, rest = now(), memoryview(content)
        try:
            return cls(sock, sent, rest[sock.send(content, 0, 0.0) :])
        except BlockingIOError:
            return cls(sock, sent, rest)
        except OSError as error:
            return cls(sock, sent, rest, error)


class Connections(ConnectionPool):
    """The connections of one user: kept alive, without Nagle's delay, numbered as they are opened."""

    def __init__(self, load: Load, opened: Opened, size: int) -> None:
        address = payload.split(load.url)
        host, port, patience = address.hostname or "", address.port or 80, load.patience
        super().__init__(host, port, host, port, size, network_timeout=patience, connection_timeout=patience)
        self._opened = opened
        self._addresses: list[Any] = []
        self.numbers: dict[int, int] = {}

    def _resolve(self) -> list[Any]:
        # A look-up goes through a thread, and would hold up each request that needs a connection more.
        self._addresses = self._addresses or super()._resolve()
        return self._addresses

    def free(self) -> Any | None:
        """An open connection that nobody uses; null where one would have to be opened or waited for."""
        if self._socket_queue.empty():
            return None
        # There is a permit for each that lies in the queue, so this does not wait.
        self._semaphore.acquire()
        sock = self._socket_queue.get(block=False)
        if self._is_socket_alive(sock):
            return sock
        self.release_socket(sock)
        return None

    def after_connect(self, sock: Any) -> None:
        """Called by the pool with a new connection."""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.numbers[sock.fileno()] = self._opened.count
        self._opened.count += 1


class Answer(HTTPSocketPoolResponse):
    """A response that knows when its first byte was there."""

    first_byte: int | None = None

    def _on_message_begin(self) -> None:
        self.first_byte = now()
        super()._on_message_begin()
