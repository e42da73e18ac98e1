"""What requests of `http_grammar` ask a server of the protocol for, well or badly: paths, methods, tensors, files."""

import functools
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from loadtest.benchmark.hostile import flat_png, png_with_texts, progressive_jpeg
from medserve import wire

MODEL = "/v2/models/empty"
SHAPE = (28, 28, 3)
HEAD_LENGTH = wire.HEAD_LENGTH.encode()


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
