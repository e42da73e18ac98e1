"""The one wrapper: Open Inference Protocol v2 as a raw ASGI application, the same for every runtime.

What it does not know: any framework, and any image or model format. A codec turns bytes into arrays and back, `infer`
(see `serve.scheduler`) turns images into scores. Every answer says what it spent: between the two stamps of
`Medserve-Clock` lie queue (waiting for the inference thread, and for the event loop after it), decode, infer, encode,
and the reception of the body, which is the rest.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from math import prod
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from medserve import wire
from medserve.errors import BadInput
from medserve.spec import Artifact, Deployment
from medserve.timing import now
from serve import bodies, images, pages
from serve.metrics import CONTENT_TYPE, Metrics
from serve.scheduler import Busy, Dispatch, TooLate

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

JSON_BYTES = 8
"""Bytes that a JSON request may take for each byte of an image (three digits, a comma, blanks)."""
HEAD_BYTES = 1 << 16
RETRY_SECONDS = 5.0
"""After a failure, whoever asks for readiness is answered no for so long, and then by a prediction that is tried."""
TRIAL_SECONDS = 1.0

_log = logging.getLogger("medserve")


class Refusal(Exception):
    """An error answer: status, what was expected, further headers."""

    def __init__(self, status: int, error: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(error)
        self.status = status
        self.headers = headers


class Asked(Protocol):
    """A decoded request."""

    @property
    def images(self) -> NDArray[np.uint8]:
        """What is to be classified, (N, H, W, C)."""

    @property
    def within(self) -> int | None:
        """Nanoseconds that the client would wait, where it said so."""


class Codec(NamedTuple):
    """How a route reads a body (and the header that says where its JSON ends), and answers.

    No good body is above `limit` bytes, for it carries at `most` so much.
    """

    decode: Callable[[bytes, str | None], Any]
    encode: Callable[[NDArray[np.float32], Any], tuple[Headers, bytes]]
    limit: int
    most: str


class App:
    """Serves one artifact. `infer` awaits uint8 (N, H, W, C) images, N up to the largest batch of the deployment."""

    def __init__(self, artifact: Artifact, deployment: Deployment, infer: Dispatch) -> None:
        self._infer = infer
        self._name = artifact.name
        shape, classes = artifact.image_shape, artifact.checkpoint.classes
        largest = deployment.batch_sizes[-1]
        tensors = Codec(
            partial(wire.decode_request, shape=shape, largest=largest),
            partial(wire.encode_response, artifact.name, pages.VERSION, classes=classes),
            HEAD_BYTES + JSON_BYTES * largest * prod(shape),
            f"{largest} images",
        )
        files = Codec(
            lambda body, _: images.decode(body, shape),
            partial(images.encode, artifact.name, pages.VERSION, classes),
            images.LARGEST_FILE,
            "one image file",
        )
        models = pages.models(artifact)
        self._routes = {f"{model}/infer": tensors for model in models} | {
            f"{model}/classify": files for model in models
        }
        self._pages = pages.pages(artifact, deployment)
        self._metrics = Metrics(artifact.name, infer)
        self._blank = np.zeros((1, *shape), np.uint8)
        self._unready: str | None = None
        self._failed_at = 0

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
        except asyncio.CancelledError:
            # The server drains and its patience is at an end; nobody else cancels a request.
            status, headers, body = _error(Refusal(503, "the server is stopping"))
        except Exception as error:  # our own mistake is an answer in JSON too
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
        head_length = encoding = None
        for name, value in request_headers:
            if name == b"inference-header-content-length":
                head_length = value.decode("latin-1")
            elif name == b"content-length":
                if int(value) > route.limit:
                    raise _too_large(route)
            elif name == b"content-encoding" and value != b"identity":
                encoding = value
                if encoding not in bodies.WINDOWS:
                    raise Refusal(
                        415, f"Content-Encoding is {value.decode('latin-1')[:40]!r}; expected gzip or deflate"
                    )
        try:
            message = await receive()
            body: bytes = message.get("body", b"")
            if message.get("more_body"):
                body = await bodies.rest(body, receive, route.limit)
            complete = now()
            if encoding is not None:
                body = bodies.inflate(body, encoding, route.limit)
            asked: Asked = route.decode(body, head_length)
        except BadInput as error:
            raise Refusal(400, str(error)) from None
        except bodies.TooLarge:
            raise _too_large(route) from None
        decoded = now()
        try:
            scores, started, done = await self._infer(asked.images, asked.within)
        except Busy as busy:
            raise Refusal(503, f"{busy}; try again", (b"retry-after", b"1")) from None
        except TooLate:
            raise Refusal(504, "the deadline of this request passed before it was answered") from None
        except Exception as error:  # a framework raises anything; the client must hear of it, and the server go on
            raise Refusal(500, self._failed(error)) from None
        resumed = now()
        if self._unready is not None:
            self._recovered()
        headers, answer = route.encode(scores, asked)
        sent = now()
        stages = (started - decoded + resumed - done, decoded - complete, done - started, sent - resumed)
        self._metrics.answered(*stages)
        headers.append((b"server-timing", wire.server_timing(*stages)))
        headers.append((b"medserve-clock", b"%d %d" % (received, sent)))
        return headers, answer

    def _failed(self, error: Exception) -> str:
        """Say that the server is not ready, until a prediction comes again; returns why."""
        self._unready, self._failed_at = f"the runtime failed: {type(error).__name__}: {error}"[:500], now()
        _log.error("not ready", {"model": self._name, "reason": self._unready}, exc_info=error)
        return self._unready

    def _recovered(self) -> None:
        self._unready = None
        _log.warning("ready again", {"model": self._name})

    async def _check_ready(self) -> None:
        """Raise a 503 while the runtime fails. Who routes by readiness sends nothing meanwhile that could tell."""
        if self._unready is None:
            return
        if now() - self._failed_at > RETRY_SECONDS * 1e9:
            try:
                async with asyncio.timeout(TRIAL_SECONDS):
                    await self._infer(self._blank)
            except Exception:  # whatever it is, nothing is better than it was
                self._failed_at = now()
            else:
                self._recovered()
                return
        raise Refusal(503, self._unready)

    async def _page(self, path: str, method: str) -> tuple[Headers, bytes]:
        if path in self._routes:
            raise Refusal(405, f"{method} {path} is not offered; expected POST", (b"allow", b"POST"))
        if path not in self._pages and path != pages.METRICS:
            raise Refusal(404, self._unknown(path))
        if method != "GET":
            raise Refusal(405, f"{method} {path} is not offered; expected GET", (b"allow", b"GET"))
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


def _too_large(route: Codec) -> Refusal:
    return Refusal(413, f"the body is above {route.limit} bytes; this model takes at most {route.most}")


def _error(refusal: Refusal) -> tuple[int, Headers, bytes]:
    headers = [(b"content-type", b"application/json"), *refusal.headers]
    return refusal.status, headers, msgspec.json.encode({"error": str(refusal)})
