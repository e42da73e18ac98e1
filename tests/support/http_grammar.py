"""A grammar of HTTP/1.1 requests to a server of the protocol, each with what is known of its answer.

RFC 9112 for the framing, RFC 9110 for methods, headers and statuses, the Open Inference Protocol v2 for paths and
bodies. What these leave open, a request leaves open too. The same random state gives the same request.
"""

import gzip
import zlib
from dataclasses import dataclass
from random import Random

from http_contents import HEAD_LENGTH, Draft, file, nowhere, odd_target, page, tensor, wrong_method

from loadtest.benchmark.hostile import UPGRADE

MALFORMED_HEADERS = (b"no colon", b"Space : x", b": x", b"Nul: a\0b", b"Na(me: x", b"Na me: x", b"Return: a\rb")


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
    packed = {b"deflate": zlib.compress, b"Deflate": zlib.compress}.get(name, _gzip)(draft.body)
    is_file = draft.what.startswith("classify")
    what = f"coding {name.decode()}"
    if is_file or name in (b"br", b"gzip, gzip", b"two"):
        draft.expect(415, closes=draft.closes, what=what)
    elif name == b"bomb":
        packed = _gzip(bytes(4 << 20))
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


def _gzip(content: bytes) -> bytes:
    """Without the time of day."""
    return gzip.compress(content, mtime=0)


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
        line = chance.choice(MALFORMED_HEADERS)
        draft.headers.insert(chance.randrange(len(draft.headers) + 1), line)
        # Where it is refused for the number of its headers, that may come first.
        draft.expect(400, *draft.statuses & {431}, closes=True, what=f"header {line!r}")
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
