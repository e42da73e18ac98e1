"""The one wrapper: Open Inference Protocol v2 as a raw ASGI application, the same for every runtime.

What it does not know: any framework, and any image or model format. `medserve.wire` turns bytes into arrays, `infer`
(see `serve.scheduler`) turns images into scores. Every infer response says what it spent: between the two stamps of
`Medserve-Clock` lie queue (waiting for the inference thread, and for the event loop after it), decode, infer, encode,
and the reception of the body, which is the rest.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from math import prod
from typing import Any

import msgspec

import medserve
from medserve import wire
from medserve.errors import BadInput
from medserve.spec import Artifact, Deployment
from medserve.tables import INPUT, OUTPUT
from medserve.timing import now
from serve.scheduler import Dispatch, QueueFull

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

VERSION = "1"
JSON_BYTES = 8
"""Bytes that a JSON request may take for each byte of an image (three digits, a comma, blanks)."""
HEAD_BYTES = 1 << 16

_log = logging.getLogger("medserve")


class Refusal(Exception):
    """An error answer: status, what was expected, further headers."""

    def __init__(self, status: int, error: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(error)
        self.status = status
        self.headers = headers


class App:
    """Serves one artifact. `infer` awaits uint8 (N, H, W, C) images, N up to the largest batch of the deployment."""

    def __init__(self, artifact: Artifact, deployment: Deployment, infer: Dispatch) -> None:
        self._infer = infer
        self._name = artifact.name
        self._shape = artifact.image_shape
        self._largest = deployment.batch_sizes[-1]
        self._limit = HEAD_BYTES + JSON_BYTES * self._largest * prod(self._shape)
        models = (f"/v2/models/{self._name}", f"/v2/models/{self._name}/versions/{VERSION}")
        self._infer_paths = frozenset(f"{model}/infer" for model in models)
        self._pages = _pages(artifact, deployment, models)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        received = now()
        path: str = scope["path"]
        try:
            if path in self._infer_paths and scope["method"] == "POST":
                headers, body = await self._answer(scope["headers"], receive, received)
                status = 200
            else:
                status, headers, body = 200, [(b"content-type", b"application/json")], self._page(path, scope["method"])
        except Refusal as refusal:
            status, headers, body = _error(refusal)
        except asyncio.CancelledError:
            # The server drains and its patience is at an end; nobody else cancels a request.
            status, headers, body = _error(Refusal(503, "the server is stopping"))
        headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, request_headers: Headers, receive: Receive, received: int) -> tuple[Headers, bytes]:
        head_length = None
        for name, value in request_headers:
            if name == b"inference-header-content-length":
                head_length = value.decode("latin-1")
            elif name == b"content-length":
                if int(value) > self._limit:
                    raise self._too_large()
            elif name == b"content-encoding" and value != b"identity":
                encoding = value.decode("latin-1")[:40]
                raise Refusal(415, f"Content-Encoding is {encoding!r}; expected an uncompressed body")
        message = await receive()
        body: bytes = message.get("body", b"")
        if message.get("more_body"):
            body = await self._rest(body, receive)
        complete = now()
        try:
            request = wire.decode_request(body, head_length, self._shape, self._largest)
            decoded = now()
            scores, started, done = await self._infer(request.images)
        except BadInput as error:
            raise Refusal(400, str(error)) from None
        except QueueFull:
            raise Refusal(503, "as many requests wait as the queue holds; try again", (b"retry-after", b"1")) from None
        except Exception as error:  # a framework raises anything; the client must hear of it, and the server go on
            _log.exception("inference failed")
            raise Refusal(500, f"the runtime failed: {type(error).__name__}: {error}"[:500]) from None
        resumed = now()
        headers, answer = wire.encode_response(self._name, VERSION, scores, request)
        sent = now()
        waited = started - decoded + resumed - done
        timing = wire.server_timing(waited, decoded - complete, done - started, sent - resumed)
        headers.append((b"server-timing", timing))
        headers.append((b"medserve-clock", b"%d %d" % (received, sent)))
        return headers, answer

    async def _rest(self, body: bytes, receive: Receive) -> bytes:
        parts = [body]
        size = len(body)
        more = True
        while more:
            message = await receive()
            # A client that hangs up leaves a body too short to decode; its 400 goes nowhere.
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
            size += len(parts[-1])
            if size > self._limit:
                raise self._too_large()
        return b"".join(parts)

    def _too_large(self) -> Refusal:
        return Refusal(413, f"the body is above {self._limit} bytes; this model takes at most {self._largest} images")

    def _page(self, path: str, method: str) -> bytes:
        page = self._pages.get(path)
        if path in self._infer_paths:
            raise Refusal(405, f"{method} {path} is not offered; expected POST", (b"allow", b"POST"))
        if page is None:
            raise Refusal(404, self._unknown(path))
        if method != "GET":
            raise Refusal(405, f"{method} {path} is not offered; expected GET", (b"allow", b"GET"))
        return page

    def _unknown(self, path: str) -> str:
        match path.split("/")[1:]:
            case ["v2", "models", name, *_] if name != self._name:
                return f"unknown model {name[:100]!r}; there is: {self._name}"
            case ["v2", "models", _, "versions", version, *_] if version != VERSION:
                return f"unknown version {version[:100]!r} of {self._name}; there is: {VERSION}"
        return f"unknown path {path[:200]!r}; there is: {', '.join(sorted({*self._pages, *self._infer_paths}))}"


def _pages(artifact: Artifact, deployment: Deployment, models: tuple[str, ...]) -> dict[str, bytes]:
    """The bodies of all GET requests: nothing that they say changes while the server lives."""
    classes = len(artifact.checkpoint.classes)
    platform = f"medserve_{deployment.runtime}"
    metadata = {
        "name": artifact.name,
        "versions": [VERSION],
        "platform": platform,
        "inputs": [{"name": INPUT, "datatype": "UINT8", "shape": [-1, *artifact.image_shape]}],
        "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, classes]}],
    }
    config = {
        "name": artifact.name,
        "platform": platform,
        "max_batch_size": deployment.batch_sizes[-1],
        "input": [{"name": INPUT, "data_type": "TYPE_UINT8", "dims": artifact.image_shape}],
        "output": [{"name": OUTPUT, "data_type": "TYPE_FP32", "dims": [classes]}],
    }
    extensions = ["binary_tensor_data", "model_configuration"]
    pages: dict[str, Any] = {
        "/v2": {"name": "medserve", "version": medserve.__version__, "extensions": extensions},
        "/v2/models": {"models": [artifact.name]},
        "/v2/health/live": {"live": True},
        "/v2/health/ready": {"ready": True},
    }
    for model in models:
        pages[model] = metadata
        pages[f"{model}/config"] = config
        pages[f"{model}/ready"] = {"name": artifact.name, "ready": True}
    return {path: msgspec.json.encode(page) for path, page in pages.items()}


def _error(refusal: Refusal) -> tuple[int, Headers, bytes]:
    headers = [(b"content-type", b"application/json"), *refusal.headers]
    return refusal.status, headers, msgspec.json.encode({"error": str(refusal)})
