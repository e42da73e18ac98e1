"""The requests of a load test: images in a seeded order, each request encoded before the clock starts."""

import http.client
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import msgspec
import numpy as np
from numpy.typing import NDArray

from medserve import plugins, wire
from medserve.errors import BadInput, CannotRun, unknown
from medserve.spec import BODIES, OIP, LoadProfile, Noun
from medserve.tables import INPUT

MAX_READY_BYTES = 256 << 20
"""Bytes of images that are encoded beforehand; of a larger set a seeded part is sent."""
RANDOM_IMAGES = 64
"""Images drawn at random when no file of images is given."""
TIMEOUT_SECONDS = 30.0
"""Seconds without a byte after which a request fails, and that the last answers may take after the end."""
JSON_REQUESTS = 64
"""Requests of JSON numbers that are encoded beforehand: they are four times as large, and slow to encode."""
AUDIT_PAIRS = 32
"""Pairs of equal requests in a cache audit."""


class Load(Noun, frozen=True, kw_only=True):
    """The plan of a test: a JSON file named by the variable MEDSERVE_LOAD.

    `images` is an .npy file uint8 (N, H, W, C); without it images of `shape` (H, W, C) are drawn at random. `expected`
    is an .npy file float32 (N, classes), null when nothing is compared. `out` is the Parquet file of the samples.
    `audit` is another one, for the AUDIT_PAIRS pairs that a closed loop of one user sends afterwards: a new image, then
    the same request again. A server that answers the second one faster caches answers. `body` is the plug-in of
    `loadtest.generator.bodies`, and `path` that of a prediction where it is not the body's own.
    """

    url: str
    model: str
    profile: LoadProfile
    images: str | None = None
    shape: tuple[int, int, int] | None = None
    expected: str | None = None
    out: str | None = None
    audit: str | None = None
    seed: int = 0
    cpus: tuple[int, ...] = ()
    timeout_seconds: float = TIMEOUT_SECONDS
    body: str = OIP
    path: str = ""


def open_images(path: Path) -> NDArray[np.uint8]:
    """A memory-mapped uint8 (N, H, W, C) array. Raises BadInput when the file is not one."""
    images: NDArray[np.uint8] = _open(path, "images")
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        raise BadInput(f"{path}: {images.dtype} {images.shape}; expected images as uint8 (N, H, W, C)")
    return images


def open_scores(path: Path, images: int) -> NDArray[np.float32]:
    """The certified scores of so many images, float32 (images, classes). Raises BadInput when the file is different."""
    scores: NDArray[np.float32] = _open(path, "scores")
    if scores.dtype != np.float32 or scores.ndim != 2 or len(scores) != images:
        raise BadInput(f"{path}: {scores.dtype} {scores.shape}; expected float32 ({images}, classes)")
    return scores


def _open(path: Path, what: str) -> NDArray[Any]:
    try:
        opened: NDArray[Any] = np.load(path, mmap_mode="r")
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file of {what}") from None
    except (OSError, ValueError, EOFError) as error:
        raise BadInput(f"{path}: not an .npy file of {what}: {error}") from None
    return opened


def batches(images: NDArray[np.uint8], batch: int, seed: int) -> NDArray[np.int64]:
    """The images of each request, int64 (requests, batch): a permutation given by `seed`, at most MAX_READY_BYTES."""
    order = np.random.default_rng(seed).permutation(len(images))
    count = max(1, min(len(order) // batch, MAX_READY_BYTES // (batch * images[0].nbytes)))
    return np.resize(order, (count, batch)).astype(np.int64)


def requests(load: Load) -> tuple[NDArray[np.int64], list[bytes]]:
    """The images of each request, int64 (requests, batch), and its bytes on the wire, head included."""
    if load.images is not None:
        images = open_images(Path(load.images))
    elif load.shape is not None:
        images = np.random.default_rng(load.seed).integers(0, 256, (RANDOM_IMAGES, *load.shape), np.uint8)
    else:
        raise BadInput("a plan needs 'images' or the 'shape' of those to draw")
    chosen = batches(images, load.profile.batch, load.seed)[: JSON_REQUESTS if load.profile.sends_json else None]
    return chosen, [_request(load, np.asarray(images[row])) for row in chosen]


def check(load: Load) -> None:
    """Raise BadInput for a plan that cannot be followed."""
    profile = load.profile
    if not 0 <= profile.gap_seconds < float("inf"):
        raise BadInput(f"the gap of {profile.name} is {profile.gap_seconds} s; expected 0 or more seconds")
    # The requests of other users would come between the two of a pair.
    if load.audit is not None and (profile.mode != "closed-loop" or profile.users != 1):
        raise BadInput("an audit needs a closed loop of one user in one process; remove 'audit'")


def audit_requests(load: Load, seed: int) -> list[bytes]:
    """The requests of an audit, 2 x AUDIT_PAIRS: each pair is the same request twice, of images drawn by `seed`."""
    shape = open_images(Path(load.images)).shape[1:] if load.images is not None else load.shape or ()
    images = np.random.default_rng(seed).integers(0, 256, (AUDIT_PAIRS, load.profile.batch, *shape), np.uint8)
    return [request for drawn in images for request in [_request(load, drawn)] * 2]


def body_of(load: Load) -> ModuleType:
    """The plug-in that encodes the requests of a plan and decodes their answers. Raises BadInput for an unknown one."""
    return plugins.load(BODIES, "oip_json" if load.profile.sends_json and load.body == OIP else load.body)


def target(load: Load) -> str:
    """Where the requests of a plan go. Raises BadInput as `address_of`."""
    address_of(load.url)
    return load.url.rstrip("/") + (load.path or body_of(load).PATH[0]).format(model=load.model)


def _request(load: Load, images: NDArray[np.uint8]) -> bytes:
    return wire.http_request(target(load), *body_of(load).encode(images))


def infer_url(url: str, model: str) -> str:
    """Where the server at `url` takes inference requests for `model`. Raises BadInput as `address_of`."""
    address_of(url)
    return f"{url.rstrip('/')}/v2/models/{model}/infer"


def address_of(url: str) -> tuple[str, int]:
    """Host and port of a server. Raises BadInput for a URL that cannot be load-tested."""
    parts = urlsplit(url)
    try:
        port = 80 if parts.port is None else parts.port
    except ValueError:
        port = 0
    if parts.scheme != "http" or not parts.hostname or port == 0:
        raise BadInput(
            f"{url.partition('/v2/')[0]!r} is not the address of a server; expected http://HOST:PORT (TLS would be "
            "timed with it)"
        )
    return parts.hostname, port


def describe(url: str, model: str | None) -> tuple[str, tuple[int, int, int]]:
    """The name of a server's model (of its only one, when `model` is null) and the (H, W, C) of its images.

    Raises CannotRun when no server of the protocol answers, BadInput when a model must be named.
    """
    if model is None:
        names = _models(url)
        if len(names) != 1:
            raise BadInput(f"{url} has several models, or does not list them; name one with --model: {names or '?'}")
        model = names[0]
    status, metadata = _ask_json(url, "GET", f"/v2/models/{model}")
    if status == 404:
        raise unknown("model", model, _models(url))
    try:
        (tensor,) = metadata["inputs"]
        name, datatype, (_, height, width, channels) = tensor["name"], tensor["datatype"], map(int, tensor["shape"])
    except (TypeError, KeyError, ValueError):
        raise CannotRun(
            f"{url} does not describe {model} as an image classifier by the Open Inference Protocol v2"
        ) from None
    if (name, datatype) != (INPUT, "UINT8") or min(height, width, channels) < 1:
        raise CannotRun(
            f"{model} wants {datatype} {tensor['shape']} as {name!r}; "
            f"this program sends UINT8 [N, H, W, C] of a fixed size as '{INPUT}'"
        )
    return model, (height, width, channels)


def _models(url: str) -> list[str]:
    """The models that a server lists, by the route of KServe or by that of Triton."""
    for method, path in (("GET", "/v2/models"), ("POST", "/v2/repository/index")):
        status, answer = _ask_json(url, method, path)
        if status == 200:
            listed = answer.get("models", []) if isinstance(answer, dict) else answer
            return [str(item["name"] if isinstance(item, dict) else item) for item in listed]
    return []


def _ask_json(url: str, method: str, path: str) -> tuple[int, Any]:
    try:
        status, body = ask(method, url.rstrip("/") + path)
        return status, msgspec.json.decode(body)
    except msgspec.MsgspecError:
        return status, None
    except (OSError, http.client.HTTPException) as error:
        raise CannotRun(
            f"no server answers at {url} ({error}); start one with `medserve serve`, or correct the URL"
        ) from None


def ask(
    method: str, url: str, headers: Mapping[str, str] | None = None, body: bytes = b"", seconds: float = TIMEOUT_SECONDS
) -> tuple[int, bytes]:
    """Status and body of the answer to one request, sent on a connection of its own with a timeout in seconds.

    Raises OSError or http.client.HTTPException without an answer, BadInput as `address_of`.
    """
    with closing(http.client.HTTPConnection(*address_of(url), timeout=seconds)) as connection:
        connection.request(method, urlsplit(url).path, body or None, dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, answer.read()
