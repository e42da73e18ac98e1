"""Whole connections of requests by `http_grammar`: how they are sent, cut, ended and read, and what is wrong."""

import asyncio
import json
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Literal

import h11
from http_grammar import Request, request

DOCUMENTED = {200, 400, 404, 405, 408, 413, 415, 431}
"""Statuses that a client can cause alone: a 503 needs a full queue or too many connections, a 500 a mistake."""
TOLERATED = {204, 501, 505}
"""Statuses of RFC 9110 for what the grammar leaves open."""
PATIENCE = 60
SLOW_SECONDS = 3.0


@dataclass(frozen=True)
class Conversation:
    """Requests of one connection, how they are sent, how the connection ends, and how its answers are read.

    Of the last request only `cut` bytes are sent where it is not None.
    """

    number: int
    requests: tuple[Request, ...]
    pipelined: bool
    sending: Literal["whole", "split", "drip"]
    cut: int | None
    end: Literal["wait", "half-close", "close", "reset"]
    reading: Literal["all", "slow", "none"]

    @property
    def waits_for_limit(self) -> bool:
        """Whether only the server's limit on the time of a request ends it."""
        return self.cut is not None and self.end == "wait"

    def describe(self) -> str:
        cut = "" if self.cut is None else f", the last cut at {self.cut} of {len(self.requests[-1].content)}"
        asked = "; ".join(one.what for one in self.requests)
        pipelined = "pipelined" if self.pipelined else "in turn"
        return (
            f"conversation {self.number} ({pipelined}, {self.sending}, {self.end}, read {self.reading}{cut}): {asked}"
        )


@dataclass
class Answer:
    is_head: bool
    status: int
    content_type: str
    body: bytes = b""


@dataclass
class Received:
    """Answers in their order, and whether the server closed the connection; `error` where it sent no HTTP.

    `sending_seconds`: of the request that took this client the longest time to send.
    """

    answers: list[Answer] = field(default_factory=list)
    provisional: int = 0
    closed: bool = False
    error: str = ""
    sending_seconds: float = 0.0


def conversation(seed: int, number: int) -> Conversation:
    """The same seed and number give the same one."""
    chance = Random(f"{seed} {number}")
    count = chance.choice([1, 1, 1, 2, 2, 3, 4, 6])
    requests = tuple(request(chance, f"{number}-{at}") for at in range(count))
    cut = chance.randrange(len(requests[-1].content)) if chance.random() < 0.25 else None
    end: Literal["wait", "half-close", "close", "reset"]
    reading: Literal["all", "slow", "none"]
    (end,) = chance.choices(["wait", "half-close", "close", "reset"], [70, 16, 6, 8] if cut is None else [3, 3, 2, 2])
    reading = chance.choice(["all", "all", "all", "slow"])
    if end in ("close", "reset"):
        reading = chance.choice(["all", "none"])
    if cut == 0 and end == "wait":
        # Between two requests a client may rest for minutes.
        end = "close"
    (sending,) = chance.choices(["whole", "split", "drip"], [6, 3, 1])
    return Conversation(number, requests, chance.random() < 0.6, sending, cut, end, reading)


def problems(asked: Conversation, received: Received) -> list[str]:
    """What is wrong with the answers of a conversation."""
    if received.sending_seconds > SLOW_SECONDS and not asked.waits_for_limit:
        # The server may have closed the connection of a client whose machine is busy.
        return []
    found = [received.error] if received.error else []
    for answer in received.answers:
        found += _problems_of(answer)
    if asked.end in ("close", "reset"):
        return found
    for at, one in enumerate(asked.requests):
        is_cut = asked.cut is not None and at == len(asked.requests) - 1
        if at == len(received.answers):
            # The server takes a client that closes its side for gone, and does not compute what it asked.
            return found if is_cut or asked.end == "half-close" else [*found, f"no answer: {one.what}"]
        answer = received.answers[at]
        allowed = one.statuses | ({400, 408, 413} if is_cut else set())
        if answer.status not in allowed:
            found.append(f"{answer.status}, expected {sorted(allowed)}: {one.what}")
            return found
        if answer.status in (200, 404) and one.contains not in answer.body:
            found.append(f"the answer is not of this request: {one.what}")
        if one.closes is None or is_cut or answer.status == 408:
            # Where the next request begins is uncertain; at most one more refusal than requests can come.
            return found + ["too many answers"] * (len(received.answers) > len(asked.requests) + 1)
        if one.closes:
            found += [f"answers behind the last: {one.what}"] * (len(received.answers) > at + 1)
            found += [f"left open: {one.what}"] * (not received.closed)
            return found
    return found + ["too many answers"] * (len(received.answers) > len(asked.requests))


def _problems_of(answer: Answer) -> list[str]:
    if answer.status not in DOCUMENTED | TOLERATED:
        return [f"status {answer.status}: {answer.body[:200]!r}"]
    if answer.status == 200 or answer.is_head:
        return []
    try:
        told = json.loads(answer.body)
    except ValueError:
        return [f"no JSON: {answer.body[:100]!r}"]
    if answer.content_type != "application/json" or set(told) != {"error"} or not isinstance(told["error"], str):
        return [f"{answer.status} is not an object with error alone, but {answer.content_type} {answer.body[:100]!r}"]
    return []


class Reader:
    """Parses answers by h11, which is strict, as they arrive."""

    def __init__(self, asked: Conversation) -> None:
        self.received = Received()
        heads = [one.is_head for one in asked.requests]
        if asked.cut is not None:
            # Half a HEAD is answered like what it is: no HTTP.
            heads[-1] = False
        self._heads = iter(heads)
        self._begin(b"")

    def feed(self, content: bytes) -> None:
        """What came next; nothing when the server closed."""
        self.received.closed |= not content
        if self.received.error or (not content and self._is_between_answers):
            return
        try:
            self._parser.receive_data(content)
            self._read(at_end=not content)
        except h11.RemoteProtocolError as error:
            left_over = self._parser.trailing_data[0][:100]
            self.received.error = f"the answer is no HTTP: {error}, {self._parser.their_state}, {left_over!r}"

    def _read(self, at_end: bool) -> None:
        while True:
            match self._parser.next_event():
                case h11.InformationalResponse():
                    self.received.provisional += 1
                case h11.Response() as head:
                    kind = dict(head.headers).get(b"content-type", b"").decode()
                    self._answer = Answer(self._is_head, head.status_code, kind)
                case h11.Data() as data:
                    self._answer.body += data.data
                case h11.EndOfMessage():
                    self.received.answers.append(self._answer)
                    self._begin(self._parser.trailing_data[0])
                    if at_end:
                        return
                case _:
                    return

    @property
    def _is_between_answers(self) -> bool:
        return self._parser.their_state is h11.SEND_RESPONSE and not self._parser.trailing_data[0]

    def _begin(self, left_over: bytes) -> None:
        self._parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 22)
        self._is_head = next(self._heads, False)
        method = "HEAD" if self._is_head else "GET"
        self._parser.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
        self._parser.send(h11.EndOfMessage())
        if left_over:
            self._parser.receive_data(left_over)


class Connection:
    """One connection of a conversation: sends, and reads in the background."""

    def __init__(self, asked: Conversation) -> None:
        self._asked, self._chance = asked, Random(asked.number)
        self._reader = Reader(asked)
        self._news = asyncio.Event()
        self._socket = socket.socket()
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def converse(self, address: tuple[str, int]) -> Received:
        """Everything from connecting to the end. Raises TimeoutError when the server neither answers nor closes."""
        loop = asyncio.get_running_loop()
        received = self._reader.received
        reading: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(PATIENCE):
                await loop.sock_connect(self._socket, address)
                if self._asked.reading != "none":
                    reading = asyncio.create_task(self._read())
                await self._send_all()
                if self._asked.end in ("close", "reset"):
                    await asyncio.sleep(self._chance.choice([0, 0, 0.01]))
                elif self._asked.waits_for_limit:
                    await self._until(lambda: False)
                else:
                    if self._asked.end == "half-close":
                        self._half_close()
                    await self._until(lambda: len(received.answers) >= len(self._asked.requests))
                    if self._asked.end == "half-close" or self._must_close():
                        await self._until(lambda: False)
        finally:
            if reading is not None:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
            if self._asked.end == "reset":
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._socket.close()
        return received

    def _must_close(self) -> bool:
        return (
            self._asked.cut is None
            and all(one.closes is False for one in self._asked.requests[:-1])
            and bool(self._asked.requests[-1].closes)
        )

    def _half_close(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            # The server was faster.
            return

    async def _send_all(self) -> None:
        received = self._reader.received
        contents = [one.content for one in self._asked.requests]
        if self._asked.cut is not None:
            contents[-1] = contents[-1][: self._asked.cut]
        if self._asked.pipelined:
            await self._send(b"".join(contents))
            return
        for at, (one, content) in enumerate(zip(self._asked.requests, contents, strict=True)):
            if self._asked.reading == "none" or (at == len(contents) - 1 and self._asked.cut is not None):
                await self._send(content)
                continue
            provisional = received.provisional
            if one.expects_continue:
                await self._send(content[: one.head_bytes])
                await self._until(lambda: received.provisional > provisional or len(received.answers) > at)  # noqa: B023
                content = content[one.head_bytes :]
            await self._send(content)
            await self._until(lambda: len(received.answers) > at)  # noqa: B023

    async def _send(self, content: bytes) -> None:
        """As the conversation says, at most 40 pieces. A server may close before it has everything."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        try:
            for piece in self._pieces(content):
                await loop.sock_sendall(self._socket, piece)
                if self._asked.sending != "whole":
                    await asyncio.sleep(0.005 if self._asked.sending == "drip" else 0)
        except OSError:
            return
        finally:
            received = self._reader.received
            received.sending_seconds = max(received.sending_seconds, loop.time() - start)

    def _pieces(self, content: bytes) -> list[bytes]:
        if self._asked.sending == "whole" or len(content) < 2:
            return [content]
        if self._asked.sending == "drip":
            # Byte by byte at the start and at the end, where the heads are.
            edges = [*range(1, min(20, len(content))), *range(max(20, len(content) - 20), len(content))]
        else:
            edges = sorted(
                self._chance.sample(range(1, len(content)), min(len(content) - 1, self._chance.randint(1, 8)))
            )
        return [content[start:stop] for start, stop in zip([0, *edges], [*edges, len(content)], strict=True)]

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        size = 1 << 16 if self._asked.reading == "all" else 97
        content = b"-"
        while content:
            try:
                content = await loop.sock_recv(self._socket, size)
            except OSError:
                content = b""
            self._reader.feed(content)
            self._news.set()
            if size < 100:
                await asyncio.sleep(0.001)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition() and not self._reader.received.closed:
            self._news.clear()
            await self._news.wait()
