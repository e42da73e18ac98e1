"""The other servers: how each is installed and started, its requests and its answers."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medserve import wire

Image = NDArray[np.uint8]
Encode = Callable[[Image], tuple[dict[str, str], bytes]]
Decode = Callable[[bytes], Any]

MODEL = ("numpy==2.4.6", "onnxruntime==1.31.1")
"""The packages of every environment for the model: this project's environment has its GPU build."""


class Body(NamedTuple):
    """The body of requests and answers: a description, and the encodings of an (H, W, C) image and of the scores."""

    words: str
    encode: Encode
    decode: Decode


class Peer(NamedTuple):
    """A server: what its environment needs, its command there, the path of a prediction, and what is sent to it.

    The first word of its name is its environment's. In command and variables stand {port} for its port, {spare} and
    {another} for free ones, {applications}, {source} (of this project) and {scratch} for folders.
    """

    name: str
    packages: tuple[str, ...]
    command: tuple[str, ...]
    path: str
    body: Body
    variables: tuple[tuple[str, str], ...] = ()


def _lists(image: Image) -> tuple[dict[str, str], bytes]:
    return {"Content-Type": "application/json"}, json.dumps({"image": image.tolist()}).encode()


def _probabilities(body: bytes) -> Any:
    found = json.loads(body)
    return found["probabilities"] if isinstance(found, dict) else found


LISTS = Body("JSON, nested lists", _lists, _probabilities)
BYTES = Body(
    "an image's bytes",
    lambda image: ({"Content-Type": "application/octet-stream"}, image.tobytes()),
    lambda body: np.frombuffer(body, "<f4"),
)
JSON_TENSORS = Body(
    "OIP v2, JSON",
    lambda image: wire.encode_request(image[None], binary=False),
    lambda body: json.loads(body)["outputs"][0]["data"],
)
BINARY_TENSORS = Body(
    "OIP v2, binary",
    lambda image: wire.encode_request(image[None]),
    lambda body: wire.decode_response(body, str(body.index(b"}]}") + 3))[0],
)


def _uvicorn(application: str) -> tuple[str, ...]:
    quiet = ("--no-access-log", "--log-level", "warning")
    return "uvicorn", application, "--host", "127.0.0.1", "--port", "{port}", *quiet


UVICORN = "uvicorn[standard]==0.54.0"
STARLETTE = ("starlette==1.10.0", UVICORN, "msgspec==0.22.0"), _uvicorn("starlette_routes:app")
STARLETTE_PATH = (("PYTHONPATH", "{applications}:{source}"),)
# One worker each, no log of requests, and otherwise what they are when they are installed. MLServer's model runs in the
# process of its server, which is faster than the worker that it starts by itself.
PEERS = (
    Peer("Starlette", *STARLETTE, "/v2/models/cells/infer", BINARY_TENSORS, STARLETTE_PATH),
    Peer("Starlette (bytes)", *STARLETTE, "/predict", BYTES, STARLETTE_PATH),
    Peer("FastAPI", ("fastapi==0.165.0", UVICORN), _uvicorn("fastapi_lists:app"), "/predict", LISTS),
    Peer("LitServe", ("litserve==0.2.19",), ("python", "{applications}/litserve_lists.py"), "/predict", LISTS),
    Peer(
        "MLServer",
        ("mlserver==1.7.1",),
        ("mlserver", "start", "{scratch}"),
        "/v2/models/cells/infer",
        JSON_TENSORS,
        (
            ("MLSERVER_HOST", "127.0.0.1"),
            ("MLSERVER_HTTP_PORT", "{port}"),
            ("MLSERVER_GRPC_PORT", "{spare}"),
            ("MLSERVER_METRICS_PORT", "{another}"),
            ("MLSERVER_PARALLEL_WORKERS", "0"),
            ("MLSERVER_DEBUG", "false"),
        ),
    ),
    Peer(
        "BentoML",
        ("bentoml==1.4.39",),
        ("bentoml", "serve", "bentoml_lists:Cells", "--port", "{port}", "--working-dir", "{applications}"),
        "/predict",
        LISTS,
        (("BENTOML_HOST", "127.0.0.1"), ("BENTOML_HOME", "{scratch}"), ("BENTOML_DO_NOT_TRACK", "true")),
    ),
)
