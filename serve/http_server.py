"""Where the wrapper listens, how long clients may take, and how it stops: uvicorn on uvloop with `serve.protocol`."""

import asyncio
import logging
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import uvicorn

from medserve.errors import BadInput
from serve.protocol import EXPECTED, Limits, Protocol

DRAIN_SECONDS = 5
"""Until then requests that have arrived are answered when the server is told to stop."""
RECEIVE_SECONDS = 8
SEND_SECONDS = 8
SLOWEST = 1 << 16
"""Bytes per second: a request must arrive, and an answer be read, in the seconds above plus its bytes at this rate."""

_log = logging.getLogger("medserve")


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet, so that clients are refused instead of left waiting while a model loads.

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


def serve(app: Any, listener: socket.socket, limits: Limits, announce: Callable[[dict[str, str]], None]) -> None:
    """Serve the ASGI `app` until SIGTERM or Ctrl-C, then answer the requests that have arrived and return.

    `announce` is called when the server is ready, with the classes of its event loop and its protocol.
    """
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=partial(Protocol, limits=limits),  # type: ignore[arg-type]  # uvicorn only calls it
        ws="none",
        interface="asgi3",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    host, port = listener.getsockname()[:2]
    try:
        # Two processes can bind the same free port; the second one fails only here.
        listener.listen(config.backlog)
    except OSError as error:
        raise _refused(host, port, error) from None
    try:
        _Server(config, announce).run([listener])
    except KeyboardInterrupt:
        # uvicorn raises the signal again after it has drained; being told to stop is no failure.
        return


def check(connection: Protocol, time: float) -> None:
    """Close a connection that is too slow or idle for too long. `time` is in seconds of the event loop."""
    transport = connection.transport
    if connection.flow.write_paused or transport.is_closing():
        connection.unread_since = connection.unread_since or time
        if time - connection.unread_since >= SEND_SECONDS + transport.get_write_buffer_size() / SLOWEST:
            transport.abort()
        return
    connection.unread_since = 0.0
    if connection.is_owed():
        return
    waited = time - connection.since
    if connection.seen is not connection.scope:
        connection.seen, connection.since = connection.scope, time
    elif connection.scope is connection.arrived:
        if waited >= connection.limits.keep_alive_seconds:
            transport.close()
    elif waited >= RECEIVE_SECONDS + connection.held / SLOWEST:
        if connection.is_answered():
            transport.close()
        else:
            connection.refuse(408, f"No whole request within {RECEIVE_SECONDS} s. {EXPECTED}")


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, announce: Callable[[dict[str, str]], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        loop = type(asyncio.get_running_loop())
        self._announce({"event_loop": _name(loop), "http_protocol": _name(Protocol)})

    async def on_tick(self, counter: int) -> bool:
        # uvicorn calls this ten times per second, so that no request needs a timer of its own.
        if counter % 10 == 0:
            time = asyncio.get_running_loop().time()
            for connection in tuple(self.server_state.connections):
                assert isinstance(connection, Protocol)
                check(connection, time)
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
