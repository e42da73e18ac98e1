"""What one hostile client may send to an HTTP server of the protocol: up to 64 MB per attack, to this machine only.

Each attack is a generator over its own steps, so that the caller can look at the server, or stop it, in the middle.
Its connections stay open until the client's end: a server that only survives because the client leaves is not safe.
"""

import gzip
import io
import selectors
import socket
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from typing import NamedTuple

import numpy as np
from PIL import Image

from loadtest.generator.payload import address_of
from medserve import wire

BUDGET = 64 << 20
"""Bytes that the client of an attack sends at most."""
STALL_SECONDS = 1.0
"""A server that takes no byte for so long has stopped reading: the flood has ended."""
ANSWER_SECONDS = 60.0
PIECE = 1 << 16
CONNECTIONS = 900
FLOODED = 8
"""Connections that are flooded one after the other."""
PIPELINED = 16
MOST_BYTES = 16 << 20
"""Of an image file that the server takes."""
SIGNATURE_AND_HEADER = 33
"""Bytes of a PNG before its further chunks."""
REQUEST = b"GET /v2 HTTP/1.1\r\nHost: abcd\r\n\r\n"
"""32 bytes, so that a piece, and what a server reads at a time, ends with a request."""
LARGE_ANSWER = b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n"
UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"

HEADER = b"Name: value\r\n"
CHUNKED = {"Transfer-Encoding": "chunked"}
GZIP = {"Content-Encoding": "gzip"}
NO_HEADERS: Mapping[str, str] = {}

Steps = Iterator[None]


class Client(ExitStack):
    """The connections of one client to `url`, where `model` is served, and the bytes that it sends: `budget`."""

    def __init__(self, url: str, model: str, budget: int = BUDGET) -> None:
        super().__init__()
        self.url, self.model, self.budget = url, model, budget
        self._address = address_of(url)
        self.sent = 0
        self.connections: list[socket.socket] = []

    @property
    def has_budget(self) -> bool:
        """Whether bytes are left to be sent."""
        return self.sent < self.budget

    def connect(self, receive_bytes: int | None = None) -> socket.socket:
        """A new connection, whose kernel takes few answers where it is told so. Raises OSError where it is refused."""
        connection = self.enter_context(socket.socket())
        self.connections.append(connection)
        if receive_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        connection.settimeout(ANSWER_SECONDS)
        connection.connect(self._address)
        connection.settimeout(STALL_SECONDS)
        return connection

    def send(self, connection: socket.socket, content: bytes) -> bool:
        """Send; whether the server took everything, and neither closed the connection nor stopped reading."""
        view = memoryview(content)
        with suppress(OSError):
            while view:
                count = connection.send(view)
                self.sent += count
                view = view[count:]
        return not view

    def flood(self, start: bytes, piece: bytes) -> Steps:
        """Send `piece` repeatedly, after `start`; when the server takes no more, on a further connection."""
        for _ in range(FLOODED):
            connection = self.connect()
            self.send(connection, start)
            while self.has_budget and self.send(connection, piece):
                yield

    def hold(self, seconds: float) -> Steps:
        """Leave the connections open and do nothing."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            yield
            time.sleep(0.05)

    def wait_for_answers(self) -> Steps:
        """Wait until every connection has an answer or is closed, at most ANSWER_SECONDS."""
        end = time.monotonic() + ANSWER_SECONDS
        with selectors.DefaultSelector() as selector:
            for connection in self.connections:
                selector.register(connection, selectors.EVENT_READ)
            while selector.get_map() and time.monotonic() < end:
                for key, _ in selector.select(0.05):
                    selector.unregister(key.fileobj)
                yield

    def post(self, route: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
        """A POST to `infer` or `classify`; without a body only its head."""
        return wire.http_request(f"{self.url}/v2/models/{self.model}/{route}", headers, body)

    def post_each(self, route: str, bodies: Iterable[bytes], headers: Mapping[str, str] = NO_HEADERS) -> Steps:
        """Send each body on a connection of its own, and wait for the answers."""
        for body in bodies:
            self.send(self.connect(), self.post(route, headers, body))
            yield
        yield from self.wait_for_answers()


Run = Callable[[Client], Steps]


class Attack(NamedTuple):
    """What a client does, and the deployment that it does it to: options of `serve`, pixels of a side."""

    title: str
    run: Run
    options: tuple[str, ...] = ("--runtime", "null")
    size: int = 28


def flooding(piece: bytes, start: bytes = b"", route: str = "", headers: Mapping[str, str] = CHUNKED) -> Run:
    """Send as much as the server takes of `piece`, many at a time, after `start` and, for a route, the head before."""

    def run(client: Client) -> Steps:
        head = client.post(route, headers) if route else b""
        yield from client.flood(head + start, piece * (PIECE // len(piece)))

    return run


def posting_files(make: Callable[[], Iterable[bytes]]) -> Run:
    """Post image files, each on a connection of its own."""
    return lambda client: client.post_each("classify", make())


def pipelined_bodies(client: Client) -> Steps:
    """Whole infer requests of 64 KB on one connection, whose answers are not read."""
    headers, body = wire.encode_request(np.zeros((27, 28, 28, 3), np.uint8))
    padding = "a" * (PIECE - len(client.post("infer", headers | {"Padding": ""}, body)))
    yield from client.flood(b"", client.post("infer", headers | {"Padding": padding}, body))


def _ask_for_large_answers(client: Client) -> Steps:
    for _ in range(CONNECTIONS):
        client.send(client.connect(receive_bytes=4096), LARGE_ANSWER * PIPELINED)
        yield


def unread_answers(client: Client) -> Steps:
    """The largest page, 16 times on each of 900 connections, none of which is read."""
    yield from _ask_for_large_answers(client)
    yield from client.hold(2.0)


def slow_readers(client: Client) -> Steps:
    """The same on connections that are read, 100 bytes at a time."""
    yield from _ask_for_large_answers(client)
    for _ in range(20):
        for connection in client.connections:
            connection.settimeout(0)
            with suppress(OSError):
                connection.recv(100)
        yield
        time.sleep(0.1)


def half_bodies(client: Client) -> Steps:
    """Image files of nearly 16 MiB whose last byte does not come."""
    piece = bytes(PIECE)
    while client.has_budget:
        connection = client.connect()
        if not client.send(connection, client.post("classify", {"Content-Length": str(MOST_BYTES)})):
            return
        for _ in range(MOST_BYTES // PIECE - 1):
            if not client.has_budget or not client.send(connection, piece):
                break
            yield
    yield from client.hold(1.0)


def small_chunks(client: Client) -> Steps:
    """Bodies in chunks of one byte, on 8 connections that all have data when the server looks."""
    for _ in range(8):
        client.send(client.connect(), client.post("classify", CHUNKED))
    open_connections = list(client.connections)
    while client.has_budget and open_connections:
        open_connections = [one for one in open_connections if client.send(one, b"1\r\na\r\n" * (PIECE // 6))]
        yield


def many_headers(client: Client) -> Steps:
    """As many connections as the server takes, each with half a head of 60 KB in headers of four bytes."""
    content = b"GET /v2 HTTP/1.1\r\n" + b"a:\r\n" * 15_000
    for _ in range(CONNECTIONS):
        if not client.has_budget:
            return
        client.send(client.connect(), content)
        yield
    yield from client.hold(1.0)


def upgrades(client: Client) -> Steps:
    """Requests that offer HTTP/2, pipelined and unread, then one with the bytes of another protocol behind it."""
    offer = REQUEST[:-2] + UPGRADE + b"\r\n"
    whole, client.budget = client.budget, client.budget // 2
    yield from client.flood(b"", offer * (PIECE // len(offer)))
    client.budget = whole
    yield from client.flood(offer, bytes(PIECE))


def resets(client: Client) -> Steps:
    """Half a request, then a reset, 2,000 times."""
    content = client.post("infer", {"Content-Length": "5000"}) + bytes(4000)
    for _ in range(2000):
        connection = client.connect()
        client.send(connection, content)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()
        client.connections.remove(connection)
        yield


def idle_connections(client: Client) -> Steps:
    """As many connections as the server takes, on which nothing is sent."""
    for _ in range(CONNECTIONS):
        client.connect()
        yield
    yield from client.hold(1.0)


def gzip_bombs(client: Client) -> Steps:
    """Tensors of 9.6 MB in 10 KB of gzip, on 64 connections to a queue that is slowly worked off."""
    headers, body = wire.encode_request(np.zeros((64, 224, 224, 3), np.uint8))
    yield from client.post_each("infer", [gzip.compress(body)] * 64, headers | GZIP)


def inflated_json(client: Client) -> Steps:
    """Tensors in JSON of 77 MB, the most that is allowed, in 76 KB of gzip on 8 connections."""
    images = 64 * 224 * 224 * 3
    head = b'{"inputs":[{"name":"image","datatype":"UINT8","shape":[64,224,224,3],"data":['
    body = gzip.compress(head + b"0      ," * (images - 1) + b"0]}]}", 9)
    yield from client.post_each("infer", [body] * 8, GZIP | {"Content-Type": wire.JSON})


def progressive_jpeg(side: int, scans: int) -> bytes:
    """A flat grey progressive JPEG of `side` px in at least six scans, the last of which is repeated."""
    file = io.BytesIO()
    Image.new("L", (side, side), 100).save(file, "JPEG", progressive=True)
    whole = file.getvalue()
    start_of_scan = b"\xff\xda"
    repeated = whole[whole.rindex(start_of_scan) : -2]
    return whole[:-2] + repeated * (scans - whole.count(start_of_scan)) + whole[-2:]


def flat_png(side: int) -> bytes:
    """A black PNG of `side` px in colour."""
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, "PNG", compress_level=9)
    return file.getvalue()


def png_with_texts(count: int) -> bytes:
    """A PNG of 28 px with `count` compressed texts of 2**20 bytes each (iTXt, PNG specification 11.3.3.4)."""
    text = zlib.compress(b"\xf0\x9f\x98\x80" + b"a" * ((1 << 20) - 4), 9)
    whole = flat_png(28)
    texts = b"".join(_png_chunk(b"iTXt", b"key%d\0\1\0\0\0" % number + text) for number in range(count))
    return whole[:SIGNATURE_AND_HEADER] + texts + whole[SIGNATURE_AND_HEADER:]


def png_with_chunks(size: int) -> bytes:
    """A PNG of 28 px and at most `size` bytes, filled with private chunks without content."""
    whole, empty = flat_png(28), _png_chunk(b"abCd", b"")
    return whole[:SIGNATURE_AND_HEADER] + empty * ((size - len(whole)) // len(empty)) + whole[SIGNATURE_AND_HEADER:]


def jpeg_with_segments(size: int) -> bytes:
    """A JPEG of 64 px and at most `size` bytes, filled with application segments without content."""
    whole, empty = progressive_jpeg(64, 6), b"\xff\xe5\0\2"
    return whole[:2] + empty * ((size - len(whole)) // len(empty)) + whole[2:]


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


LARGE_BATCH = ("--batch-sizes", "64")
QUEUED = ("--runtime", "delay", "--options", '{"delays_ms": [200]}', "--dispatch", "thread", *LARGE_BATCH)

ATTACKS = {
    "trailers": Attack("endless trailers", flooding(HEADER, b"2\r\n{}\r\n0\r\n", "infer")),
    "pipelined": Attack("pipelined GETs, answers unread", flooding(REQUEST)),
    "bodies": Attack("pipelined tensors, answers unread", pipelined_bodies),
    "unread": Attack("large answers, never read", unread_answers),
    "slow": Attack("large answers, read slowly", slow_readers),
    "half": Attack("image files without their last byte", half_bodies),
    "chunks": Attack("chunks of one byte", small_chunks),
    "extension": Attack("endless chunk extension", flooding(b"a", b"1;", "classify")),
    "heads": Attack("endless heads", flooding(HEADER, b"GET /v2 HTTP/1.1\r\n")),
    "headers": Attack("half heads in headers of 4 bytes", many_headers),
    "upgrades": Attack("HTTP/2 upgrade offers", upgrades),
    "resets": Attack("half requests, reset", resets),
    "idle": Attack("idle connections", idle_connections),
    "scans": Attack("JPEG in 8,000 scans", posting_files(lambda: [progressive_jpeg(2048, 8000)])),
    "pixels": Attack("PNG of 16 Mpx", posting_files(lambda: [flat_png(4096)] * 8)),
    "files": Attack("PNG of 4 Mpx", posting_files(lambda: [flat_png(2048)] * 64)),
    "texts": Attack("PNG with compressed texts", posting_files(lambda: [png_with_texts(63)] * 8)),
    "metadata": Attack(
        "16 MiB of empty metadata",
        posting_files(lambda: [png_with_chunks(MOST_BYTES), jpeg_with_segments(MOST_BYTES)] * 2),
    ),
    "bombs": Attack("gzip bombs into the queue", gzip_bombs, QUEUED, 224),
    "json": Attack("gzip of 77 MB of JSON", inflated_json, ("--runtime", "null", *LARGE_BATCH), 224),
}
