"""HTTP/1.1 under the wrapper: uvicorn on uvloop and httptools; where it listens, and how it stops."""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any

import msgspec
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from medserve.errors import BadInput

_log = logging.getLogger("medserve")

EXPECTED = "Expected HTTP/1.1: a request line, headers, an empty line, and the body that they announce."
HIGH_WATER = 8 << 20
"""Bytes of a body that are read ahead of the application: 32 images of 224 px, with room to spare."""

HEAD_BYTES = 1 << 16
BUFFERED = 512 << 20
"""Bytes that all requests together may hold which come in pieces, until they are answered."""
CONNECTIONS = 900
"""Connections at a time: fewer than the 1,024 files that a process usually may open."""
RECEIVE_SECONDS = 8
"""Until then a request has arrived, or its connection is closed."""
KEEP_ALIVE_SECONDS = 600
DRAIN_SECONDS = 5

CLOSING = b"\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
STATUSES = {
    400: b"Bad Request",
    408: b"Request Timeout",
    431: b"Request Header Fields Too Large",
    503: b"Service Unavailable\r\nretry-after: 1",
}


class Joined:
    """A transport that holds the head of an answer back until the body comes: one system call, one packet.

    uvicorn writes them apart; each write goes through the whole network stack and wakes the client.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""
        self.is_closing, self.get_extra_info = transport.is_closing, transport.get_extra_info

    def write(self, data: bytes) -> None:
        """Write, but for a head, which is held. A provisional one (100 Continue) is no head of an answer."""
        if self._head:
            data, self._head = self._head + data, b""
        elif data.endswith(b"\r\n\r\n") and not data.startswith(b"HTTP/1.1 1"):
            self._head = data
            return
        self._transport.write(data)

    def flush(self) -> None:
        """Write a head to which no body came: the answer to HEAD."""
        if self._head:
            self.write(b"")

    def close(self) -> None:
        """Close, when all is written."""
        self.flush()
        self._transport.close()


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol, with errors in JSON, bodies handed over whole, and bounds on what a client may do.

    Whatever is counted here is counted of requests that do not come in one piece: the others pay nothing for it.
    """

    buffered = 0
    # The scope of the last request that has arrived, and of the one that was looked at last, and since when.
    arrived: Any = ()
    looked: Any = ()
    since = 0.0
    held = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Refuse a connection that is one too many."""
        super().connection_made(transport)  # type: ignore[arg-type]  # a TCP server's
        self.transport = Joined(self.transport)  # type: ignore[assignment]  # what uvicorn uses of one
        if len(self.connections) > CONNECTIONS:
            self.refuse(503, f"there are {CONNECTIONS} connections already; try again.")

    def data_received(self, data: bytes) -> None:
        """Parse what came; count it where it does not complete a request."""
        super().data_received(data)
        if self.scope is not self.arrived:
            self._hold(len(data))

    def on_body(self, body: bytes) -> None:
        """Collect a body; wake the application when it is complete, or before that when it is above HIGH_WATER.

        uvicorn's own limit of 64 KiB stops the reading in the middle of a 224 px image, or does not, by the chance of
        how the kernel cut it: two populations of latency.
        """
        cycle = self.cycle
        if cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER:
            self.flow.pause_reading()
            cycle.message_event.set()

    def on_message_complete(self) -> None:
        """Wake the application."""
        self.arrived = self.scope
        cycle = self.cycle
        if cycle.response_complete:
            self._forget()
            return
        if self.held:
            cycle.on_response = self._release
        cycle.more_body = False
        cycle.message_event.set()

    def on_response_complete(self) -> None:
        """Go on to the next request."""
        self.transport.flush()  # type: ignore[attr-defined]  # see Joined
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget what the connection held."""
        super().connection_lost(exc)
        self._forget()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, and close: where the next request begins is unknown."""
        self.refuse(400, f"{msg} {EXPECTED}")

    def refuse(self, status: int, error: str) -> None:
        """Answer without the application, and close."""
        content = msgspec.json.encode({"error": error})
        head = b"HTTP/1.1 %d %s" % (status, STATUSES[status])
        self.transport.write(head + CLOSING % len(content) + content)
        self.transport.close()

    def look(self, time: float) -> None:
        """Close the connection when a request has been under way since `RECEIVE_SECONDS` before `time`."""
        if self.scope is self.arrived or self.flow.read_paused or self.transport.is_closing():
            return
        if self.looked is not self.scope:
            self.looked, self.since = self.scope, time
        elif time - self.since >= RECEIVE_SECONDS:
            if self._is_answered():
                self.transport.close()
            else:
                self.refuse(408, f"No whole request within {RECEIVE_SECONDS} s. {EXPECTED}")

    def _hold(self, count: int) -> None:
        if self.transport.is_closing() or self._is_answered():
            return
        self.held += count
        Protocol.buffered += count
        if self.held > HEAD_BYTES and (self.cycle is None or self.cycle.scope is not self.scope):
            self.refuse(431, f"The head of the request is above {HEAD_BYTES} bytes.")
        elif Protocol.buffered > BUFFERED:
            self.refuse(503, f"All requests together are above {BUFFERED} bytes; try again.")

    def _is_answered(self) -> bool:
        """Whether the request that is under way has its answer already, and the rest of its body is thrown away."""
        return self.cycle is not None and self.cycle.scope is self.scope and self.cycle.response_complete

    def _release(self) -> None:
        self._forget()
        self.on_response_complete()

    def _forget(self) -> None:
        Protocol.buffered -= self.held
        self.held = 0


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet: a client is refused, and not left waiting, until the model is loaded.

    Raises BadInput when the address cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise _refused(host, port, error) from None
    return listener


def serve(app: Any, listener: socket.socket, announce: Callable[[dict[str, str]], None]) -> None:
    """Serve the ASGI `app` until SIGTERM or Ctrl-C, then answer what is under way and return.

    `announce` is called when the server answers, with the classes of its event loop and its protocol.
    """
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=Protocol,
        ws="none",
        interface="asgi3",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    host, port = listener.getsockname()[:2]
    try:
        # Of two processes that bound the same free port, the second one learns of the first only here.
        listener.listen(config.backlog)
    except OSError as error:
        raise _refused(host, port, error) from None
    try:
        _Server(config, announce).run([listener])
    except KeyboardInterrupt:
        # uvicorn raises the signal again after it has drained; being told to stop is no failure.
        return


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, announce: Callable[[dict[str, str]], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        loop = type(asyncio.get_running_loop())
        protocol = self.config.http_protocol_class
        self._announce({"event_loop": _name(loop), "http_protocol": _name(protocol)})

    async def on_tick(self, counter: int) -> bool:
        # uvicorn's own clock, ten times a second: no request needs a timer of its own.
        if counter % 10 == 0:
            time = asyncio.get_running_loop().time()
            for connection in tuple(self.server_state.connections):
                assert isinstance(connection, Protocol)
                connection.look(time)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        _log.info("draining", {"connections": len(self.server_state.connections)})
        await super().shutdown(sockets)
        _log.info("ended", {"requests": self.server_state.total_requests})


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _refused(host: str, port: int, error: OSError) -> BadInput:
    return BadInput(
        f"cannot listen on {host} port {port}: {error.strerror}; choose another with --host or --port (0: any free one)"
    )
