"""HTTP/1.1 under the wrapper: uvicorn on uvloop and httptools; where it listens, and how it stops."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import msgspec
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from medserve.errors import BadInput

HIGH_WATER = 8 << 20
"""Bytes of a body that are read ahead of the application: 32 images of 224 px, with room to spare."""

BAD_REQUEST = (
    b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
)
KEEP_ALIVE_SECONDS = 600
DRAIN_SECONDS = 5


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol, with errors in JSON and bodies handed over whole."""

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

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, and close: where the next request begins is unknown."""
        error = f"{msg} Expected HTTP/1.1: a request line, headers, an empty line, and the body that they announce."
        content = msgspec.json.encode({"error": error})
        self.transport.write(BAD_REQUEST % len(content) + content)
        self.transport.close()


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


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _refused(host: str, port: int, error: OSError) -> BadInput:
    return BadInput(
        f"cannot listen on {host} port {port}: {error.strerror}; choose another with --host or --port (0: any free one)"
    )
