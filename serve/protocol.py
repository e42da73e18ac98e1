"""HTTP/1.1 under the wrapper: uvicorn's protocol on httptools, and the limits on what a client may do."""

import asyncio
from typing import Any

import httptools
import msgspec
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

EXPECTED = "Expected HTTP/1.1: a request line, headers, an empty line, and the body that they announce."
HIGH_WATER = 8 << 20
"""Bytes of a body that are read ahead of the application: 32 images of 224 px, with room to spare."""
HEAD_BYTES = 1 << 16
"""Bytes of the head of a request that comes in several pieces."""
FIELDS = 100
"""Header fields of a request: a field of four bytes takes forty times as much memory."""
PIECES, PIECE_BYTES = 1 << 16, 16
"""Pieces of a body that may be smaller than so many bytes: a chunk takes as long to parse as thousands to copy."""
PIPELINE = 16
"""Requests of one connection that may wait behind the one that is answered."""
CONNECTIONS = 900
"""Connections at a time: fewer than the 1,024 files that a process usually may open, and more than the load generator
uses (`medserve.tables.Limits.connections`)."""

HEAD_LIMITS = f"The request has more than {FIELDS} header fields or trailers, or {HEAD_BYTES} bytes of them."
CLOSING = b"connection: close\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"


class Limits:
    """Bytes that the requests of all connections may hold together, and seconds that a connection may be idle.

    `held` counts the bytes that they hold until they are answered. The connections share one object: CPython forgets
    its caches of a class whenever an attribute of the class is set.
    """

    __slots__ = ("held", "held_bytes", "keep_alive_seconds")

    def __init__(self, held_bytes: int, keep_alive_seconds: float = 75.0) -> None:
        self.held_bytes, self.keep_alive_seconds, self.held = held_bytes, keep_alive_seconds, 0


class Refused(Exception):
    """A request that a callback of the parser refuses, by the arguments of `Protocol._fail`: status and error."""


class _Flow(FlowControl):
    """Flow control that does not resume reading while requests of the connection wait for their answers."""

    def __init__(self, transport: Any, pipeline: Any) -> None:
        super().__init__(transport)
        self._pipeline = pipeline

    def resume_reading(self) -> None:
        if not self._pipeline:
            super().resume_reading()


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol with errors in JSON, bodies passed on whole, and limits on what a client may do.

    `tests/test_uvicorn_parts.py` names the private parts of uvicorn that this class relies on.
    """

    def __init__(self, *words: Any, limits: Limits, **named: Any) -> None:
        super().__init__(*words, **named)
        self.limits = limits
        self.held = 0
        # The scope of the last request that arrived whole.
        self.arrived: Any = ()
        # The scope that the last periodic check of `serve.http_server` saw, and since when; and since when the client
        # does not read.
        self.seen: Any = ()
        self.since = self.unread_since = 0.0
        # Bytes of the last piece; the head that arrives in pieces, and its bytes without the first piece.
        self.count = self.head = self.trailers = self.pieces = 0
        self.head_of: Any = ()
        # The request that is answered, the task that answers it, and the head of the answer until its body comes.
        self.active: Any = None
        self.task: asyncio.Task[None] | None = None
        self.response_head = b""
        # Status and reason that follow the answers which the connection is still owed.
        self.failure: tuple[int, str] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept a connection; when there are too many, close the one that has been inactive for longest."""
        super().connection_made(transport)  # type: ignore[arg-type]  # a TCP server's
        self.flow = _Flow(transport, self.pipeline)
        if len(self.connections) > CONNECTIONS:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        """Parse `data`; check the limits when it does not complete a request."""
        self.count = count = len(data)
        self.held += count
        self.limits.held += count
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._decline(data[offer.args[0] :])
            return
        except httptools.HttpParserError as error:
            cause = error.__context__
            refused = cause.args if isinstance(cause, Refused) else (400, f"Invalid HTTP request received. {EXPECTED}")
            self._fail(*refused)
            return
        if self.scope is not self.arrived:
            self._check_incomplete(count)

    def on_message_begin(self) -> None:
        """Begin a request, unless too many wait already."""
        if len(self.pipeline) >= PIPELINE:
            raise Refused(503, f"More than {PIPELINE} requests wait on this connection; send them one by one.")
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header field; drop a trailer, which RFC 9110, 6.5.1, forbids to merge into the headers."""
        headers = self.headers
        if headers is None:
            self.trailers += 1
            if self.trailers > FIELDS:
                raise Refused(431, HEAD_LIMITS)
            if name.lower() in (b"connection", b"proxy-connection") and b"close" in value.lower():
                # The parser obeys it, and would ignore all further requests.
                raise httptools.HttpParserError("a trailer must not close the connection")
            return
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        headers.append((name, value))
        if len(headers) > FIELDS:
            raise Refused(431, HEAD_LIMITS)

    def on_headers_complete(self) -> None:
        """Pass the request on to the application, or queue it."""
        # A head of a single small piece need not be added up.
        if (self.count > HEAD_BYTES or self.head_of is self.scope) and (
            len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > HEAD_BYTES
        ):
            raise Refused(431, HEAD_LIMITS)
        if self.parser.should_upgrade():
            return
        super().on_headers_complete()
        self.headers = None  # type: ignore[assignment]  # what follows is no header
        self.trailers = self.pieces = 0

    def on_body(self, body: bytes) -> None:
        """Collect a body; wake the application when it is complete, or before that when it is above HIGH_WATER.

        uvicorn's own limit of 64 KiB stops reading in the middle of a 224 px image or not, depending on how the kernel
        split it, which makes two populations of latency.
        """
        cycle = self.cycle
        if cycle.response_complete:
            return
        cycle.body += body
        if len(body) < PIECE_BYTES:
            self.pieces += 1
            if self.pieces > PIECES:
                raise httptools.HttpParserError("very many small chunks")
        if len(cycle.body) > HIGH_WATER:
            self.flow.pause_reading()
            cycle.message_event.set()

    def on_message_complete(self) -> None:
        """Wake the application."""
        if self.parser.should_upgrade():
            return
        self.arrived = self.scope
        cycle = self.cycle
        if cycle.response_complete:
            self._release()
            return
        cycle.more_body = False
        cycle.message_event.set()

    def on_response_complete(self) -> None:
        """Go on to the next request of the connection.

        uvicorn would start a timer for the idle connection here; `check` does without one per request.
        """
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self._release()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self.failure is not None:
            self.refuse(*self.failure)
            return
        if self.flow.read_paused:
            self.flow.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Release what the connection held, and cancel the request whose client has gone."""
        super().connection_lost(exc)
        self.pipeline.clear()
        self.limits.held -= self.held
        self.held = 0
        if self.active is not None and not self.active.response_complete and self.task is not None:
            self.active.disconnected = True
            self.task.cancel()

    def refuse(self, status: int, error: str) -> None:
        """Answer without the application, and close."""
        content = msgspec.json.encode({"error": error})
        retry = b"retry-after: 1\r\n" if status == 503 else b""
        self.transport.write(STATUS_LINE[status] + retry + CLOSING % len(content) + content)
        self.transport.close()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self.active = cycle
        cycle.send = self._send
        task = self.task = self.loop.create_task(cycle.run_asgi(app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    async def _send(self, message: Any) -> None:
        """Send the head of an answer, then its whole body: both in one write, in place of uvicorn's two.

        A write goes through the whole network stack and wakes the client. The application gives Content-Length, and
        nothing in its header fields comes from a client.
        """
        cycle = self.active
        if self.flow.write_paused and not cycle.disconnected:
            await self.flow.drain()
        if cycle.disconnected:
            return
        if message["type"] == "http.response.start":
            cycle.response_started = True
            lines = [STATUS_LINE[message["status"]]]
            for name, value in message["headers"]:
                if name == b"connection":
                    cycle.keep_alive = False
                else:
                    lines += (name, b": ", value, b"\r\n")
            lines.append(b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n")
            self.response_head = b"".join(lines)
            return
        head = self.response_head
        self.transport.write(head if cycle.scope["method"] == "HEAD" else head + message["body"])
        cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def _decline(self, rest: bytes) -> None:
        """Read a request that offers another protocol again, without the offer: HTTP/1.1 answers it.

        The parser takes `rest`, what follows its head, for the other protocol's.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._fail(400, f"CONNECT is not offered. {EXPECTED}")
            return
        lines = [b"%b %b HTTP/%b" % (method, self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                value = b", ".join(option for option in value.split(b",") if option.strip().lower() != b"upgrade")
            if name != b"upgrade":
                lines.append(name + b": " + value)
        self.parser = httptools.HttpRequestParser(self)
        # As uvicorn does: what follows a request with "Connection: close" is no error.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        again = b"\r\n".join([*lines, b"", b""]) + rest
        self.held -= len(again)
        self.limits.held -= len(again)
        self.data_received(again)

    def _fail(self, status: int, error: str) -> None:
        """Refuse what cannot be parsed, after the answers to the whole requests before it."""
        if self.failure is not None:
            return
        if self.is_answered():
            self.transport.close()
            return
        arrives = self.scope is not self.arrived
        if arrives and self.pipeline and self.pipeline[0][0].scope is self.scope:
            self.pipeline.popleft()
        is_owed = self.active is not None and not self.active.response_complete
        if is_owed and not (arrives and self.active.scope is self.scope):
            self.failure = status, error
            self.flow.pause_reading()
        else:
            self.refuse(status, error)

    def _check_incomplete(self, count: int) -> None:
        if self.transport.is_closing():
            return
        if self.is_answered():
            self._release()
        elif self.cycle is None or self.cycle.scope is not self.scope:
            # The piece in which a head begins also holds the end of what comes before it, and is not counted.
            self.head = self.head + count if self.head_of is self.scope else 0
            self.head_of = self.scope
            if self.head > HEAD_BYTES:
                self._fail(431, HEAD_LIMITS)
        if self.limits.held > self.limits.held_bytes:
            # The largest one, for a few large requests that never end must not keep out the small ones.
            incomplete = [one for one in self._others() if one.scope is not one.arrived]
            largest = max(incomplete, key=lambda one: one.held, default=self)
            error = f"The requests that arrive together hold more than {self.limits.held_bytes} bytes; try again."
            largest._fail(503, error)

    def _make_room(self) -> None:
        waiting = [one for one in self._others() if one is not self and not one.is_owed()]
        now = self.loop.time()
        longest = min(waiting, key=lambda one: one.since if one.seen is one.scope else now, default=None)
        if longest is None:
            self.refuse(503, f"{CONNECTIONS} connections are in use; try again.")
        elif longest.scope is longest.arrived:
            longest.transport.close()
        else:
            longest.refuse(503, f"There are {CONNECTIONS} connections, and this one sends no request; try again.")

    def _others(self) -> list["Protocol"]:
        """All connections that are open."""
        return [one for one in self.connections if isinstance(one, Protocol) and not one.transport.is_closing()]

    def is_owed(self) -> bool:
        """Whether the client waits for the server: for an answer, or for what it sent to be read."""
        return self.flow.read_paused or (
            self.scope is self.arrived and self.cycle is not None and not self.cycle.response_complete
        )

    def is_answered(self) -> bool:
        """Whether the request that arrives has its answer already, and the rest of its body is thrown away."""
        return self.cycle is not None and self.cycle.scope is self.scope and self.cycle.response_complete

    def _release(self) -> None:
        """Count what is held anew: nothing, but for the bodies of requests that still wait or arrive."""
        held = 0
        if self.pipeline or self.scope is not self.arrived:
            held = sum(len(cycle.body) for cycle, _ in self.pipeline)
            if self.cycle is not None and not self.cycle.response_complete:
                held += len(self.cycle.body)
        self.limits.held -= self.held - held
        self.held = held
