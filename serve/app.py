"""The one wrapper: Open Inference Protocol v2 as a raw ASGI application, the same for every runtime.

What it does not know: any framework, and any image or model format. A codec turns bytes into arrays and back, `infer`
(see `serve.scheduler`) turns images into scores. Every answer says what it spent: between the two stamps of
`Medserve-Clock` lie queue (waiting for an inference thread, and for the event loop after it), decode, infer, encode,
and the reception of the body, which is the rest.

Bodies that are cheap to decode are decoded in the event loop; image files, compressed bodies and large JSON are decoded
in a thread of their own, so that they do not hold up other requests.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from math import prod
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from medserve import wire
from medserve.errors import BadInput
from medserve.models import Artifact
from medserve.spec import Deployment
from medserve.timing import now
from serve import bodies, images, pages
from serve.decoding import Decoding
from serve.metrics import CONTENT_TYPE, Metrics
from serve.scheduler import Busy, Dispatch, TooLate

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
DecodedRequest = wire.Request | images.File

JSON_BYTES = 8
"""Bytes that a JSON request may take for each byte of an image (three digits, a comma, blanks)."""
HEAD_BYTES = 1 << 16
LARGE_JSON = 1 << 20
"""Bytes of a JSON request above which it is decoded beside the event loop: they take about 3 ms."""
RETRY_SECONDS = 5.0
"""After a failure, `/ready` returns 503 for this long, then runs a trial inference."""
TRIAL_SECONDS = 1.0

_log = logging.getLogger("medserve")


class Refusal(Exception):
    """An error answer: status, what was expected, further headers."""

    def __init__(self, status: int, error: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(error)
        self.status = status
        self.headers = headers


class Codec(NamedTuple):
    """How a route reads a body (and the header that says where its JSON ends), and answers.

    No valid body is above `limit` bytes; `most` says why. Its decoding takes at most `peak_bytes` of memory.
    `encodings` are the content encodings that are read.
    """

    decode: Callable[[bytes, str | None], Any]
    encode: Callable[[NDArray[np.float32], Any], tuple[Headers, bytes]]
    limit: int
    most: str
    peak_bytes: int
    encodings: tuple[bytes, ...]
    is_file: bool


class App:
    """Serves one artifact. `infer` awaits uint8 (N, H, W, C) images, N up to the largest batch of the deployment.

    `largest_body` is the size of the largest valid body, `largest_request` the memory that decoding the largest valid
    request takes, both in bytes.
    """

    def __init__(self, artifact: Artifact, deployment: Deployment, infer: Dispatch) -> None:
        self._infer = infer
        self._name = artifact.name
        shape, classes, task = artifact.image_shape, artifact.checkpoint.classes, artifact.checkpoint.task
        largest = deployment.batch_sizes[-1]
        pixels = largest * prod(shape)
        limit = HEAD_BYTES + JSON_BYTES * pixels
        tensors = Codec(
            decode=partial(wire.decode_request, shape=shape, largest=largest),
            encode=partial(wire.encode_response, artifact.name, pages.VERSION, classes=classes),
            limit=limit,
            most=f"{largest} images",
            # As it came compressed or in pieces, as a whole, its numbers alone, and its pixels.
            peak_bytes=3 * limit + pixels,
            encodings=tuple(bodies.WINDOWS),
            is_file=False,
        )
        files = Codec(
            decode=lambda body, _: images.decode(body, shape, artifact.checkpoint.window),
            encode=partial(images.encode, artifact.name, pages.VERSION, classes, task),
            limit=images.LARGEST_FILE,
            most="one image file",
            peak_bytes=images.PEAK_BYTES,
            encodings=(),
            is_file=True,
        )
        self.largest_body = max(tensors.limit, files.limit)
        self.largest_request = max(tensors.peak_bytes, files.peak_bytes)
        self.decoding = Decoding(deployment)
        self._timeout = None if deployment.deadline_ms is None else round(deployment.deadline_ms * 1e6)
        models = pages.models(artifact)
        self._routes = {f"{model}/infer": tensors for model in models} | {
            f"{model}/classify": files for model in models
        }
        self._pages = pages.pages(artifact, deployment)
        self._metrics = Metrics(artifact.name, infer)
        self._blank = np.zeros((1, *shape), np.uint8)
        self._unready: str | None = None
        self._failed_at = 0
        self._is_tried = False

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        received = now()
        path: str = scope["path"]
        try:
            route = self._routes.get(path)
            if route is not None and scope["method"] == "POST":
                headers, body = await self._answer(route, scope["headers"], receive, received)
                status = 200
            else:
                status, headers, body = 200, *await self._page(path, scope["method"])
        except Refusal as refusal:
            status, headers, body = _error(refusal)
        except Busy as busy:
            status, headers, body = _error(Refusal(503, f"{busy}; try again", (b"retry-after", b"1")))
        except TooLate:
            status, headers, body = _error(Refusal(504, "the deadline of this request passed before it was answered"))
        except asyncio.CancelledError:
            # The client has gone, or the time to drain is over.
            status, headers, body = _error(Refusal(503, "the server is stopping"))
        except Exception as error:  # a mistake of this program is answered in JSON too
            _log.exception("mistake", {"path": path})
            status, headers, body = _error(Refusal(500, f"the server failed: {type(error).__name__}: {error}"[:500]))
        if status != 200 and path in self._routes:
            self._metrics.refused(status)
        headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(
        self, route: Codec, request_headers: Headers, receive: Receive, received: int
    ) -> tuple[Headers, bytes]:
        given = dict(request_headers)
        if b"origin" in given:
            raise Refusal(403, "requests of web pages (with the header Origin) are refused; let a proxy remove it")
        if int(given.get(b"content-length", b"0")) > route.limit:
            raise _too_large(route)
        end = given.get(b"inference-header-content-length")
        head_length = None if end is None else end.decode("latin-1")
        encoding = _encoding(route, request_headers) if b"content-encoding" in given else None
        try:
            message = await receive()
            body: bytes = message.get("body", b"")
            if message.get("more_body"):
                body = await bodies.rest(body, receive, route.limit)
            if len(body) > route.limit:
                raise bodies.TooLarge
            complete = now()
            if encoding is None and (head_length is not None or len(body) <= LARGE_JSON) and not route.is_file:
                request: DecodedRequest = route.decode(body, head_length)
            elif encoding is not None and route.limit <= LARGE_JSON:
                request = _decode(route, body, head_length, encoding)
            else:
                request = await self.decoding(partial(_decode, route, body, head_length, encoding), self._timeout)
        except BadInput as error:
            raise Refusal(400, str(error)) from None
        except bodies.TooLarge:
            raise _too_large(route) from None
        # Where the images are no part of it, the body need not be kept while they wait.
        del message, body
        decoded = now()
        try:
            timeout = request.timeout_ns if self._timeout is None else self._left(request, decoded - complete)
            scores, started, done = await self._infer(request.images, timeout)
        except (Busy, TooLate):
            raise
        except Exception as error:  # a framework raises anything; the client is told, and the server goes on
            raise Refusal(500, self._failed(error)) from None
        resumed = now()
        if self._unready is not None:
            self._recovered()
        headers, answer = route.encode(scores, request)
        sent = now()
        stages = (started - decoded + resumed - done, decoded - complete, done - started, sent - resumed)
        self._metrics.answered(*stages)
        headers.append((b"server-timing", wire.server_timing(*stages)))
        headers.append((b"medserve-clock", b"%d %d" % (received, sent)))
        return headers, answer

    def _left(self, request: DecodedRequest, spent: int) -> int:
        """Nanoseconds until the deadline of the client, or of the deployment less the time that decoding took."""
        left = (self._timeout or 0) - spent
        return left if request.timeout_ns is None else min(left, request.timeout_ns)

    def _failed(self, error: Exception) -> str:
        """Report not ready until a prediction succeeds again; returns the reason."""
        self._unready, self._failed_at = f"the runtime failed: {type(error).__name__}: {error}"[:500], now()
        _log.error("not ready", {"model": self._name, "reason": self._unready}, exc_info=error)
        return self._unready

    def _recovered(self) -> None:
        self._unready = None
        _log.warning("ready again", {"model": self._name})

    async def _check_ready(self) -> None:
        """Raise a 503 while the runtime fails; after RETRY_SECONDS one trial inference tells whether it still does."""
        if self._unready is None:
            return
        if not self._is_tried and now() - self._failed_at > RETRY_SECONDS * 1e9:
            self._is_tried = True
            try:
                async with asyncio.timeout(TRIAL_SECONDS):
                    await self._infer(self._blank)
            except Exception:  # whatever it is, the runtime does not work
                self._failed_at = now()
            else:
                self._recovered()
                return
            finally:
                self._is_tried = False
        raise Refusal(503, self._unready)

    async def _page(self, path: str, method: str) -> tuple[Headers, bytes]:
        if path in self._routes:
            raise Refusal(405, f"{method} {path} is not offered; expected POST", (b"allow", b"POST"))
        if path not in self._pages and path != pages.METRICS:
            raise Refusal(404, self._unknown(path))
        if method not in ("GET", "HEAD"):
            raise Refusal(405, f"{method} {path} is not offered; expected GET", (b"allow", b"GET, HEAD"))
        if path == pages.METRICS:
            return [(b"content-type", CONTENT_TYPE)], self._metrics.page()
        if path.endswith("/ready"):
            await self._check_ready()
        return [(b"content-type", b"application/json")], self._pages[path]

    def _unknown(self, path: str) -> str:
        match path.split("/")[1:]:
            case ["v2", "models", name, *_] if name != self._name:
                return f"unknown model {name[:100]!r}; there is: {self._name}"
            case ["v2", "models", _, "versions", version, *_] if version != pages.VERSION:
                return f"unknown version {version[:100]!r} of {self._name}; there is: {pages.VERSION}"
        return (
            f"unknown path {path[:200]!r}; there is: {', '.join(sorted({*self._pages, *self._routes, pages.METRICS}))}"
        )


def _decode(route: Codec, body: bytes, head_length: str | None, encoding: bytes | None) -> DecodedRequest:
    """The request of a body that may be compressed. Raises BadInput and TooLarge."""
    if encoding is not None:
        body = bodies.inflate(body, encoding, route.limit)
    request: DecodedRequest = route.decode(body, head_length)
    return request


def _encoding(route: Codec, headers: Headers) -> bytes | None:
    """The Content-Encoding of a request, null for none. Raises a 415 for what the route does not read."""
    values = b",".join(value for name, value in headers if name == b"content-encoding").lower().split(b",")
    codings = [coding.strip() for coding in values if coding.strip() not in (b"", b"identity")]
    if not codings:
        return None
    if len(codings) > 1 or codings[0] not in route.encodings:
        given = b", ".join(codings).decode("latin-1")[:40]
        expected = " or ".join(known.decode() for known in route.encodings) or "none: image files are compressed"
        raise Refusal(415, f"Content-Encoding is {given!r}; expected {expected}")
    return codings[0]


def _too_large(route: Codec) -> Refusal:
    return Refusal(413, f"the body is above {route.limit} bytes; this model takes at most {route.most}")


def _error(refusal: Refusal) -> tuple[int, Headers, bytes]:
    headers = [(b"content-type", b"application/json"), *refusal.headers]
    return refusal.status, headers, msgspec.json.encode({"error": str(refusal)})
