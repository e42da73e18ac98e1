"""A grammar of HTTP/1.1 requests to a server of the protocol, each with what is known of its answer.

RFC 9112 for the framing, RFC 9110 for methods, headers and statuses, the Open Inference Protocol v2 for paths and
bodies. What these leave open, a request leaves open too. The same random state gives the same request.
"""

import functools
import gzip
import io
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from loadtest.benchmark.hostile import UPGRADE, flat_png, png_with_texts, progressive_jpeg
from medserve import wire

MODEL = "/v2/models/empty"
SHAPE = (28, 28, 3)
HEAD_LENGTH = wire.HEAD_LENGTH.encode()


@dataclass(frozen=True)
class Request:
    """Bytes of one request, and what is known of its answer.

    `statuses`: of these the answer has one. `closes`: whether the server then closes the connection; None where it may,
    and where the next request begins is uncertain. `contains`: a part of the body of a 200 or 404. `is_head`: no body
    comes. `head_bytes`: where the body begins.
    """

    content: bytes
    is_head: bool
    statuses: frozenset[int]
    closes: bool | None
    contains: bytes
    expects_continue: bool
    head_bytes: int
    what: str


@dataclass
class Draft:
    """A request that is being put together: a good one until a step of the grammar makes it another."""

    method: str = "GET"
    target: bytes = b"/v2"
    version: bytes = b"HTTP/1.1"
    headers: list[bytes] = field(default_factory=list)
    body: bytes | None = None
    statuses: frozenset[int] = frozenset({200})
    closes: bool | None = False
    contains: bytes = b""
    what: str = ""
    start: bytes = b""
    content: bytes = b""
    """The body as it is sent, in chunks or not."""

    @property
    def is_good(self) -> bool:
        return self.statuses == {200}

    @property
    def is_inferred(self) -> bool:
        """Whether it is a good one whose body the server must read."""
        return self.is_good and self.method == "POST"

    def expect(self, *statuses: int, closes: bool | None = False, what: str = "") -> None:
        """Exactly these statuses."""
        self.statuses, self.closes = frozenset(statuses), closes
        self.what += f", {what}" * bool(what)

    def allow(self, *statuses: int, what: str) -> None:
        """These statuses too, with which the server may close the connection."""
        self.expect(*self.statuses, *statuses, closes=None, what=what)


def request(chance: Random, number: str) -> Request:
    """One request; `number` is in its answer where the server repeats something of what it was sent."""
    draft = Draft()
    (content,) = chance.choices([page, nowhere, wrong_method, odd_target, tensor, file], [25, 8, 6, 4, 35, 22])
    content(chance, draft, number)
    harmless_headers(chance, draft)
    connection(chance, draft)
    if draft.is_inferred and chance.random() < 0.25:
        coding(chance, draft)
    expects_continue = draft.body is not None and chance.random() < 0.05
    if expects_continue:
        draft.headers.append(b"Expect: " + chance.choice([b"100-continue", b"100-Continue"]))
    framing(chance, draft)
    host(chance, draft)
    if chance.random() < 0.05:
        malformed_head(chance, draft)
    if draft.method == "HEAD" and not draft.statuses <= {200, 404}:
        # Whether the answer to a HEAD that is no HTTP has a body depends on when the server gives it up.
        draft.method = "GET"
    head = b"%s%s %s %s\r\n" % (draft.start, draft.method.encode(), draft.target, draft.version)
    head += b"".join(line + b"\r\n" for line in draft.headers) + b"\r\n"
    return Request(
        content=head + draft.content,
        is_head=draft.method == "HEAD",
        statuses=draft.statuses,
        closes=draft.closes,
        contains=b"" if draft.method == "HEAD" else draft.contains,
        expects_continue=expects_continue and draft.version == b"HTTP/1.1",
        head_bytes=len(head),
        what=draft.what,
    )


# What is asked for


PAGES = {
    b"/v2": b'"extensions"',
    b"/v2?a=b&c=%20": b'"extensions"',
    b"/v2/health/live": b'{"live":true}',
    b"/v2/health/l%69ve": b'{"live":true}',
    b"/v2/health/ready": b'{"ready":true}',
    b"/v2/models": b'{"models":["empty"]}',
    b"/v2/models/empty": b'"platform"',
    b"/v2/models/empty/versions/1/ready": b'"ready":true',
    b"/v2/models/empty/config": b'"max_batch_size"',
    b"/metrics": b"inference_requests",
    b"/openapi.json": b'"openapi"',
}


def page(chance: Random, draft: Draft, _number: str) -> None:
    draft.method = chance.choice(["GET", "GET", "GET", "HEAD"])
    draft.target, draft.contains = chance.choice(list(PAGES.items()))
    draft.what = f"{draft.method} page"
    if chance.random() < 0.1:
        draft.target = b"http://a:80" + draft.target
        draft.what += " by absolute form"
    if draft.method == "GET" and chance.random() < 0.1:
        draft.body = chance.randbytes(chance.randrange(2000))
        draft.what += " with a body"


def nowhere(chance: Random, draft: Draft, number: str) -> None:
    draft.method = chance.choice(["GET", "POST", "DELETE", "HEAD"])
    path = f"/nowhere-{number}".encode()
    draft.target = path + b"/a" * chance.choice([0, 3, 2000])
    draft.body = b"body" if draft.method == "POST" else None
    draft.contains, draft.what = path, f"{draft.method} of an unknown path"
    draft.expect(404)


def wrong_method(chance: Random, draft: Draft, _number: str) -> None:
    draft.method = chance.choice(["OPTIONS", "TRACE", "PATCH", "PROPFIND", "DELETE", "PUT"])
    draft.target = chance.choice([f"{MODEL}/infer", f"{MODEL}/classify", "/v2", "/v2/health/live"]).encode()
    draft.body = b"body" if chance.random() < 0.5 else None
    draft.what = "method that is not offered"
    draft.expect(405)


def odd_target(chance: Random, draft: Draft, _number: str) -> None:
    draft.method, draft.target, statuses, closes = chance.choice(
        [
            ("GET", b"*", (400, 404), None),
            ("OPTIONS", b"*", (200, 204, 400, 404, 405), None),
            ("CONNECT", b"a:80", (400, 404, 405), None),
            ("GET", b"a:80", (400, 404), None),
            ("GET", b"//v2", (200, 400, 404), None),
            ("GET", b"/v2#fragment", (200, 400, 404), None),
            ("GET", b"/%zz%ff%00", (400, 404), None),
            ("GET", b"/v2/../../etc/passwd", (400, 404), None),
            ("GET", b"http://", (400, 404), None),
            ("GET", b"http://a", (400, 404), None),
            ("GET", b"/v2\xff", (400,), True),
            ("GET", b"/v2\x01", (400,), True),
            ("GET", b"/" + b"a" * 70_000, (400, 404, 431), None),
        ]
    )
    draft.expect(*statuses, closes=closes, what=f"target {draft.target[:20]!r}")


def tensor(chance: Random, draft: Draft, number: str) -> None:
    draft.method, draft.what = "POST", "infer"
    draft.target = f"{MODEL}{chance.choice(['', '/versions/1'])}/infer".encode()
    draft.contains = b'"id":"%s"' % number.encode()
    count = chance.choice([1, 1, 1, 1, 3, 32])
    images = np.arange(count * 28 * 28 * 3, dtype=np.uint32).astype(np.uint8).reshape(count, *SHAPE)
    headers, draft.body = wire.encode_request(images, binary=chance.random() < 0.5, id=number)
    lines = {name.encode(): value.encode() for name, value in headers.items()}
    kind = chance.random()
    if kind < 0.1:
        odd = [b"-1", b"1", b"0", b"9" * 30, b"x", b"", b"1.0", b"0x10", b"\xb2", b"1 2"]
        lines[HEAD_LENGTH] = chance.choice(odd)
        draft.expect(400, what=f"head length {lines[HEAD_LENGTH]!r}")
    elif kind < 0.25:
        lines.pop(HEAD_LENGTH, None)
        draft.body = odd_json(chance, images, number)
        draft.expect(400, what="odd JSON")
    elif kind < 0.28:
        draft.body += bytes(700_000)
        draft.expect(413, closes=None, what="too large")
    draft.headers += [b"%s: %s" % line for line in lines.items()]
    if kind > 0.97:
        draft.headers.append(b"%s: %d" % (HEAD_LENGTH, chance.choice([0, 7, len(draft.body)])))
        draft.allow(400, what="a second head length")


def odd_json(chance: Random, images: NDArray[np.uint8], number: str) -> bytes:
    good = {"name": "image", "shape": list(images.shape), "datatype": "UINT8", "data": images.ravel().tolist()}
    odd = chance.choice(
        [
            {"name": "x"},
            {"shape": [1, 64, 64, 3]},
            {"shape": [2**70, *SHAPE]},
            {"datatype": "FP32"},
            {"data": [256] * images.size},
            {"data": [[]]},
            {"data": "a" * 50},
            {"parameters": {"binary_data_size": -1}},
        ]
    )
    whole = json.dumps({"id": number, "inputs": [good | odd]}).encode()
    return chance.choice([whole, whole, whole[:-1], b"", b"[" * 5000, b"\xff\xfe", b"null", whole + b"}"])


def encoded(form: str, side: int = 40, **options: object) -> bytes:
    """A flat image file of `side` px."""
    content = io.BytesIO()
    Image.new("RGB", (side, side), (10, 200, 30)).save(content, form, **options)
    return content.getvalue()


FILES: dict[str, tuple[int, tuple[int, ...], Callable[[], bytes]]] = {
    "PNG": (10, (200,), lambda: encoded("PNG")),
    "JPEG": (10, (200,), lambda: encoded("JPEG")),
    "progressive JPEG": (8, (200,), lambda: encoded("JPEG", progressive=True)),
    "WebP": (10, (200,), lambda: encoded("WEBP")),
    "PNG of 1 Mpx": (1, (200,), lambda: encoded("PNG", 1024)),
    "truncated PNG": (3, (400,), lambda: encoded("PNG")[:-40]),
    "truncated JPEG": (3, (400,), lambda: encoded("JPEG")[:-40]),
    "truncated WebP": (3, (400,), lambda: encoded("WEBP")[:-20]),
    "GIF": (2, (400,), lambda: encoded("GIF")),
    "no image": (4, (400,), lambda: bytes(range(256)) * 3),
    "nothing": (2, (400,), bytes),
    "PNG of 16 Mpx": (1, (400,), lambda: flat_png(4096)),
    "PNG of 6 Mpx": (1, (400,), lambda: encoded("PNG", 2500)),
    "JPEG of 8,000 scans": (1, (400,), lambda: progressive_jpeg(64, 8000)),
    "PNG with 8 MB of texts": (1, (200, 400), lambda: png_with_texts(8)),
}
"""Weight, statuses and maker of each file."""


@functools.cache
def _file(name: str) -> bytes:
    return FILES[name][2]()


def file(chance: Random, draft: Draft, _number: str) -> None:
    (name,) = chance.choices(list(FILES), [weight for weight, *_ in FILES.values()])
    draft.method, draft.target, draft.body = "POST", f"{MODEL}/classify".encode(), _file(name)
    draft.contains, draft.what = b'"resized_from"', "classify"
    draft.expect(*FILES[name][1], what=name)


# How it is written


def harmless_headers(chance: Random, draft: Draft) -> None:
    """Headers that change nothing, in every spelling that RFC 9110 allows."""
    harmless = [b"Accept: */*", b"aCCEPT:\t*/*  ", b"X-Empty:", b"Cookie: a=b", b"Cookie: c=d", b"X-Text: \xe9\xff"]
    harmless += [b"X-Long: " + b"a" * 4000, b"Content-Encoding: identity", b"Upgrade: h2c", b"Content-Type: text/css"]
    draft.headers += chance.choices(harmless, k=chance.choice([0, 0, 1, 2, 8]))
    if chance.random() < 0.02:
        draft.headers.append(b"X-Folded: a\r\n b")
        draft.allow(400, what="folded header")
    if chance.random() < 0.01:
        draft.headers += [b"a: b"] * chance.choice([300, 3000])
        draft.allow(400, 431, what="many headers")


def host(chance: Random, draft: Draft) -> None:
    """RFC 9112 3.2 asks for a 400 without Host; servers differ."""
    kind = chance.random()
    hosts = [] if kind < 0.02 else [b"Host: a", b"HOST: b"] if kind < 0.03 else [chance.choice([b"Host: a", b"hoSt:a"])]
    if len(hosts) > 1 or (not hosts and draft.version != b"HTTP/1.0"):
        draft.allow(400, what=f"{len(hosts)} Host headers")
    draft.headers[:0] = hosts


def connection(chance: Random, draft: Draft) -> None:
    """Persistence, version and offers of other protocols."""
    kind = chance.random()
    if kind < 0.06:
        draft.headers.append(chance.choice([b"Connection: close", b"connection: Close", b"Connection: TE, close"]))
        draft.closes = True
        draft.what += ", close"
    elif kind < 0.12:
        draft.headers += [b"Connection: keep-alive", b"Keep-Alive: timeout=5"]
    elif kind < 0.18:
        draft.headers += UPGRADE.split(b"\r\n")[:-1]
        draft.what += ", upgrade to h2c"
    elif kind < 0.22:
        draft.headers += [b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13"]
        draft.headers.append(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
        draft.what += ", upgrade to websocket"
    elif kind < 0.26:
        draft.version, draft.closes = b"HTTP/1.0", True
        draft.what += ", HTTP/1.0"
        if chance.random() < 0.3:
            draft.headers.append(b"Connection: keep-alive")
            draft.closes = None
    elif kind < 0.27:
        draft.version = chance.choice([b"HTTP/0.9", b"HTTP/2.0", b"HTTP/1.2", b"HTTP/3.0"])
        draft.allow(400, 505, what=draft.version.decode())


def coding(chance: Random, draft: Draft) -> None:
    """Content codings: gzip and deflate of tensors, none of files."""
    assert draft.body is not None
    name = chance.choice([b"gzip", b"deflate", b"GZIP", b"Deflate", b"br", b"gzip, gzip", b"two", b"bomb", b"cut"])
    packed = {b"deflate": zlib.compress, b"Deflate": zlib.compress}.get(name, gzip.compress)(draft.body)
    is_file = draft.what.startswith("classify")
    what = f"coding {name.decode()}"
    if is_file or name in (b"br", b"gzip, gzip", b"two"):
        draft.expect(415, closes=draft.closes, what=what)
    elif name == b"bomb":
        packed = gzip.compress(bytes(4 << 20))
        draft.expect(413, closes=draft.closes or None, what=what)
    elif name == b"cut":
        packed = chance.choice([packed[:-3], packed + b"x", b"no gzip"])
        draft.expect(400, closes=draft.closes, what=what)
    else:
        draft.what += f", {what}"
    draft.body = packed
    named = {b"two": b"gzip", b"bomb": b"gzip", b"cut": b"gzip"}.get(name, name)
    # A body of the identity coding as well would be two codings.
    draft.headers = [line for line in draft.headers if not line.startswith(b"Content-Encoding")]
    draft.headers += [b"Content-Encoding: " + named] * (2 if name == b"two" else 1)


def framing(chance: Random, draft: Draft) -> None:
    """The body by its length or in chunks, mostly right."""
    if draft.body is None:
        return
    kind = chance.random()
    if draft.is_inferred and kind < 0.06:
        bad_framing(chance, draft)
    elif kind < 0.35 and draft.version == b"HTTP/1.1":
        draft.headers.append(chance.choice([b"Transfer-Encoding: chunked", b"transfer-encoding: Chunked"]))
        draft.content = chunks(chance, draft.body) + b"0\r\n" + trailers(chance, draft) + b"\r\n"
        draft.what += ", chunked"
    else:
        draft.headers.append(b"Content-Length: %d" % len(draft.body))
        draft.content = draft.body


def chunks(chance: Random, body: bytes) -> bytes:
    """A body in at most 50 chunks, without the last one."""
    found, at = [], 0
    while at < len(body):
        count = chance.randint(1, max(1, len(body) // 25))
        size = chance.choice([b"%x", b"%X", b"00%x"]) % len(body[at : at + count])
        extension = chance.choice([b"", b"", b";a", b";a=b", b';a="b c"'])
        found += [size, extension, b"\r\n", body[at : at + count], b"\r\n"]
        at += count
    return b"".join(found)


def trailers(chance: Random, draft: Draft) -> bytes:
    """Fields behind the last chunk, which say nothing of the message (RFC 9110 6.5)."""
    kind = chance.random()
    if kind < 0.6:
        return b""
    if kind < 0.7:
        return b"X-Checksum: 1\r\nX-Time: 2\r\n"
    if kind < 0.9:
        named = chance.choice([b"Content-Encoding: gzip", b"Content-Encoding: br", HEAD_LENGTH + b": 3", b"Host: b"])
        draft.what += f", trailer {named.decode()}"
        return named + b"\r\n"
    draft.allow(400, what="trailers of the framing")
    return chance.choice([b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n"])


def bad_framing(chance: Random, draft: Draft) -> None:
    """Lengths that contradict each other or are none (RFC 9112 6.3): the usual ways of request smuggling."""
    assert draft.body is not None
    body, length = draft.body, b"%d" % len(draft.body)
    good, chunked = b"Content-Length: " + length, b"Transfer-Encoding: chunked"
    whole = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    odd_lengths = [b"abc", b"-1", b"+" + length, b"0x5", b"5 5", b"1e3", b"", b"9" * 30, length + b", 5"]
    lines, content, statuses = chance.choice(
        [
            ([good, good], body, (400,)),
            ([good, b"Content-Length: 5"], body, (400,)),
            ([b"Content-Length: " + chance.choice(odd_lengths)], body, (400,)),
            ([good, chunked], whole, (400,)),
            ([chunked, good], whole, (400,)),
            ([b"Transfer-Encoding: " + chance.choice([b"gzip", b"identity", b"xchunked"])], body, (400, 501)),
            ([b"Transfer-Encoding: chunked, gzip"], whole, (400, 501)),
            ([chunked], b"zz\r\n" + body, (400,)),
            ([chunked], b"-5\r\n" + body, (400,)),
            ([chunked], b"1" * 17 + b"\r\n" + body, (400, 413)),
            ([chunked], b"%x\r\n%sXX0\r\n\r\n" % (len(body), body), (400,)),
        ]
    )
    draft.headers += lines
    draft.content = content
    draft.expect(*statuses, closes=True, what=f"framing {b' and '.join(lines)[:60].decode()} {content[:4]!r}")


def malformed_head(chance: Random, draft: Draft) -> None:
    """A head that is not HTTP/1.1, or with what RFC 9112 tells a server to tolerate."""
    kind = chance.randrange(10)
    if kind == 0:
        draft.start = b"\r\n"
        draft.what += ", empty line first"
        return
    if kind < 5:
        line = chance.choice([b"no colon", b"Space : x", b": x", b"Nul: a\0b", b"Na(me: x", b"Na me: x", b"Return: a\rb"])
        draft.headers.insert(chance.randrange(len(draft.headers) + 1), line)
        draft.expect(400, closes=True, what=f"header {line!r}")
        return
    if kind < 6:
        # RFC 9110 9.1: 501 where a method is unknown, 405 where it is known and not allowed.
        draft.method = chance.choice(["BREW", "get", "get-"])
        draft.expect(400, 404, 405, 501, closes=None, what=f"method {draft.method}")
        return
    if kind < 8:
        draft.method = chance.choice(["GE T", "\x16\x03\x01\x02", "{}", "GET\t"])
    else:
        draft.version = chance.choice([b"HTTP/1", b"HTPP/1.1", b"HTTP/x.1", b"HTTP/11.1", b"HTTP/1.1 x"])
    draft.expect(400, closes=True, what=f"start {draft.method!r} {draft.version!r}")
