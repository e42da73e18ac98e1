"""`python -m loadtest.benchmark.canned`: a server with a constant answer, so that the generator limits the rate.

It parses only the end of the first request; all others must be as long. At SIGTERM it prints how many requests it
answered in how much time: a count that is independent of the generator.
"""

import asyncio
import signal
from typing import Annotated, cast

import msgspec
import numpy as np
import typer
import uvloop

from loadtest.selftest.reference_client import LENGTH
from medserve import errors, machine, wire
from medserve.timing import now


class Canned(asyncio.Protocol):
    """One connection. Of all together: bytes per request, requests so far, and the time of the first and the last."""

    length = answered = first = last = 0

    def __init__(self) -> None:
        self._bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own is no subclass

    def data_received(self, data: bytes) -> None:
        """Answer the complete requests."""
        if not Canned.length:
            head = data[: data.index(b"\r\n\r\n") + 4]
            length = LENGTH.search(head)
            Canned.length = len(head) + (int(length[1]) if length else 0)
            Canned.first = now()
        self._bytes += len(data)
        if whole := self._bytes // Canned.length:
            self._bytes -= whole * Canned.length
            self._transport.write(ANSWER * whole)
            Canned.answered += whole
            Canned.last = now()


def answer() -> bytes:
    """The bytes of an answer of our servers, timing headers included."""
    request = wire.Request(np.zeros((1, 1, 1, 3), np.uint8), None, True)
    headers, body = wire.encode_response("canned", "1", np.full((1, 8), 0.125, np.float32), request)
    headers += [(b"server-timing", wire.server_timing(0, 0, 0, 0)), (b"medserve-clock", b"1 1")]
    headers += [(b"content-length", b"%d" % len(body))]
    return b"HTTP/1.1 200 OK\r\n" + b"".join(b"%s: %s\r\n" % pair for pair in headers) + b"\r\n" + body


ANSWER = answer()


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    server = await loop.create_server(Canned, "127.0.0.1", 0)
    url = "http://{}:{}".format(*server.sockets[0].getsockname())
    print(msgspec.json.encode({"event": "ready", "url": url}).decode(), flush=True)
    await stopping.wait()
    seconds = (Canned.last - Canned.first) / 1e9
    print(msgspec.json.encode({"event": "answered", "count": Canned.answered, "seconds": seconds}).decode(), flush=True)


def canned(cpus: Annotated[str, typer.Option(help="CPUs to run on, as in 0,1.")] = "") -> None:
    """Answer until SIGTERM."""
    machine.pin(tuple(map(int, filter(None, cpus.split(",")))))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve())


if __name__ == "__main__":
    errors.main(lambda: typer.run(canned))
