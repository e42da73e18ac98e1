"""Open Inference Protocol v2 over HTTP: encodes and decodes requests and responses, in JSON and in binary.

The JSON form follows KServe's `required_api.md`, the binary one Triton's `extension_binary_data.md`: first a JSON head,
whose length is in the header `Inference-Header-Content-Length`, then the tensors in their order. The likeliest classes
follow Triton's `extension_classification.md`, the timeout `extension_schedule_policy.md`.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from math import prod
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
import numpy as np
from numpy.typing import NDArray

from medserve import json_numbers
from medserve.errors import BadInput
from medserve.tables import INPUT, OUTPUT

HEAD_LENGTH = "Inference-Header-Content-Length"
SERVER_TIMING = "Server-Timing"
"""Response header of medserve: milliseconds per stage, with nanosecond digits (W3C Server Timing)."""
CLOCK = "Medserve-Clock"
"""Response header of medserve: `timing.now` when the request head had arrived and when the response was encoded."""
OCTETS = "application/octet-stream"
JSON = "application/json"

DTYPES: dict[str, np.dtype[Any]] = {"UINT8": np.dtype(np.uint8), "FP32": np.dtype("<f4")}
MAX_BATCH = 4096
"""Images per request; a request for more is refused before any memory is allocated for it."""


class _Parameters(msgspec.Struct):
    binary_data_size: int | None = None


class _Tensor(msgspec.Struct):
    name: str
    shape: tuple[int, ...]
    datatype: str
    parameters: _Parameters | None = None
    # Decoded after shape and type are checked; empty when absent.
    data: msgspec.Raw = msgspec.Raw()


class _OutputParameters(msgspec.Struct):
    binary_data: bool | None = None
    classification: Annotated[int, msgspec.Meta(ge=1)] | None = None


class _Output(msgspec.Struct):
    name: str
    parameters: _OutputParameters | None = None


class _RequestParameters(msgspec.Struct):
    binary_data_output: bool = False
    # Microseconds; 0 for no timeout.
    timeout: Annotated[int, msgspec.Meta(ge=0)] | None = None


class _Request(msgspec.Struct):
    inputs: list[_Tensor]
    id: str | None = None
    outputs: list[_Output] | None = None
    parameters: _RequestParameters | None = None


class _Response(msgspec.Struct):
    model_name: str
    outputs: list[_Tensor]
    model_version: str | None = None
    id: str | None = None


class Request(msgspec.Struct, frozen=True):
    """A decoded inference request with uint8 (N, H, W, C) images.

    `binary`: the client wants the response in binary. `likeliest`: it wants this number of likeliest classes per image
    in place of the scores. `timeout_ns`: it waits this long for the response.
    """

    images: NDArray[np.uint8]
    id: str | None
    binary: bool
    likeliest: int | None = None
    timeout_ns: int | None = None


_decode_request = msgspec.json.Decoder(_Request).decode
_decode_response = msgspec.json.Decoder(_Response).decode
_encode = msgspec.json.Encoder().encode


def decode_request(
    body: bytes, head_length: str | None, shape: tuple[int, int, int], largest: int = MAX_BATCH
) -> Request:
    """Decode an inference request for 1 to `largest` images of `shape` (H, W, C). Raises BadInput for other bodies."""
    end = _head_end(body, head_length)
    view = memoryview(body)
    try:
        request = _decode_request(view[:end])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"the request is not an Open Inference Protocol v2 request: {error}") from None
    if len(request.inputs) != 1 or request.inputs[0].name != INPUT:
        names = [tensor.name for tensor in request.inputs]
        raise BadInput(f"inputs are {_shortened(names)}; expected a single input named '{INPUT}'")
    tensor = request.inputs[0]
    outputs = request.outputs
    binary, timeout_ns, likeliest = False, None, None
    if request.parameters is not None:
        binary, timeout = request.parameters.binary_data_output, request.parameters.timeout
        timeout_ns = timeout * 1000 if timeout else None
    if outputs:
        if len(outputs) != 1 or outputs[0].name != OUTPUT:
            raise BadInput(f"outputs are {_shortened([output.name for output in outputs])}; expected only '{OUTPUT}'")
        parameters = outputs[0].parameters
        if parameters is not None:
            likeliest = parameters.classification
            if parameters.binary_data is not None:
                binary = parameters.binary_data
    if tensor.datatype != "UINT8":
        raise BadInput(f"input '{INPUT}' has datatype {_shortened(repr(tensor.datatype))}; expected 'UINT8'")
    if tensor.shape[1:] != shape or not 0 < tensor.shape[0] <= largest:
        raise BadInput(
            f"input '{INPUT}' has shape {_shortened(list(tensor.shape))}; "
            f"expected [N, {', '.join(map(str, shape))}], N from 1 to {largest}"
        )
    return Request(_array(tensor, view[end:], "input"), request.id, binary, likeliest, timeout_ns)


def encode_request(
    images: NDArray[np.uint8], *, binary: bool = True, id: str | None = None
) -> tuple[dict[str, str], bytes]:
    """Headers and body of an inference request for uint8 (N, H, W, C) images."""
    request: dict[str, Any] = {} if id is None else {"id": id}
    tensor: dict[str, Any] = {"name": INPUT, "shape": images.shape, "datatype": "UINT8"}
    if not binary:
        tensor["data"] = images.ravel().tolist()
        return {"Content-Type": JSON}, _encode(request | {"inputs": [tensor]})
    raw = np.ascontiguousarray(images).tobytes()
    tensor["parameters"] = {"binary_data_size": len(raw)}
    output = {"name": OUTPUT, "parameters": {"binary_data": True}}
    head = _encode(request | {"inputs": [tensor], "outputs": [output]})
    return {"Content-Type": OCTETS, HEAD_LENGTH: str(len(head))}, head + raw


def http_request(url: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """The bytes of a POST of HTTP/1.1. Without a body only the head: `headers` then say what follows it."""
    parts = urlsplit(url)
    length = {"Content-Length": str(len(body))} if body else {}
    lines = [f"{name}: {value}" for name, value in {**headers, **length}.items()]
    head = [f"POST {parts.path} HTTP/1.1", f"Host: {parts.netloc}", *lines, "", ""]
    return "\r\n".join(head).encode("latin-1") + body


def encode_response(
    model: str, version: str, scores: NDArray[np.float32], request: Request, classes: Sequence[str] = ()
) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """ASGI headers (without Content-Length) and body of the response with float32 (N, classes) `scores`.

    `classes` are the class names; only a response with the likeliest classes needs them. Where an image may have
    several labels, they are the likeliest labels, each with its own probability.
    """
    texts: list[str] | None = None
    datatype, shape = "FP32", scores.shape
    if request.likeliest is not None:
        texts = _likeliest(scores, request.likeliest, classes)
        datatype, shape = "BYTES", (len(scores), len(texts) // len(scores))
    if not request.binary:
        data = {"data": scores.ravel().tolist() if texts is None else texts}
        return [(b"content-type", b"application/json")], _response(model, version, datatype, shape, data, request.id)
    if texts is None and request.id is None:
        raw = np.asarray(scores, DTYPES["FP32"]).tobytes()
        head, length = _usual_head(model, version, shape, len(raw))
    else:
        raw = np.asarray(scores, DTYPES["FP32"]).tobytes() if texts is None else _as_bytes(texts)
        size = {"parameters": {"binary_data_size": len(raw)}}
        head = _response(model, version, datatype, shape, size, request.id)
        length = b"%d" % len(head)
    headers = [(b"content-type", b"application/octet-stream"), (b"inference-header-content-length", length)]
    return headers, head + raw


@lru_cache(maxsize=MAX_BATCH)
def _usual_head(model: str, version: str, shape: tuple[int, ...], size: int) -> tuple[bytes, bytes]:
    """JSON head of a binary response without an id, and its length: the same for every batch of one size."""
    head = _response(model, version, "FP32", shape, {"parameters": {"binary_data_size": size}}, None)
    return head, b"%d" % len(head)


def _response(
    model: str, version: str, datatype: str, shape: tuple[int, ...], data: dict[str, Any], id: str | None
) -> bytes:
    tensor = {"name": OUTPUT, "datatype": datatype, "shape": shape, **data}
    response = {"model_name": model, "model_version": version, "outputs": [tensor]}
    return _encode(response if id is None else {**response, "id": id})


def decode_response(body: bytes, head_length: str | None) -> NDArray[np.float32]:
    """The scores of an inference response, float32 (N, classes). Raises BadInput for any other body."""
    end = _head_end(body, head_length)
    try:
        response = _decode_response(memoryview(body)[:end])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"the response is not an Open Inference Protocol v2 response: {error}") from None
    for tensor in response.outputs:
        if tensor.name == OUTPUT and tensor.datatype == "FP32":
            if len(tensor.shape) != 2 or min(tensor.shape) < 1:
                raise BadInput(f"output '{OUTPUT}' has shape {list(tensor.shape)}; expected [N, classes]")
            return _array(tensor, memoryview(body)[end:], "output")
    raise BadInput(f"the response has no FP32 output named '{OUTPUT}'")


def server_timing(queue: int, decode: int, infer: int, encode: int) -> bytes:
    """The value of the `Server-Timing` header for the nanoseconds of each stage."""
    return b"queue;dur=%.6f, decode;dur=%.6f, infer;dur=%.6f, encode;dur=%.6f" % (
        queue / 1e6,
        decode / 1e6,
        infer / 1e6,
        encode / 1e6,
    )


def parse_server_timing(value: str) -> dict[str, int]:
    """Nanoseconds by stage, from the `Server-Timing` header of any server; skips entries without a valid duration."""
    stages: dict[str, int] = {}
    for entry in value.split(","):
        name, *parameters = (part.strip() for part in entry.split(";"))
        for parameter in parameters:
            key, _, text = parameter.partition("=")
            if key.strip().lower() == "dur":
                with suppress(ValueError, OverflowError):
                    stages[name] = round(float(text) * 1e6)
    return stages


def _head_end(body: bytes, head_length: str | None) -> int:
    if head_length is None:
        return len(body)
    if head_length.isascii() and head_length.isdigit() and len(head_length) <= 12:
        end = int(head_length)
        if end <= len(body):
            return end
    raise BadInput(f"{HEAD_LENGTH} is {head_length[:40]!r}; expected a whole number up to the body's {len(body)} bytes")


def _array(tensor: _Tensor, rest: memoryview, what: str) -> NDArray[Any]:
    dtype = DTYPES[tensor.datatype]
    count = prod(tensor.shape)
    size = tensor.parameters.binary_data_size if tensor.parameters is not None else None
    if size is None:
        return _json_array(tensor, rest, what, dtype).reshape(tensor.shape)
    if len(tensor.data):
        raise BadInput(f"{what} '{tensor.name}' has both 'data' and 'binary_data_size'; expected either")
    if size != count * dtype.itemsize or size != len(rest):
        raise BadInput(
            f"{what} '{tensor.name}' has binary_data_size {size}, and {len(rest)} bytes follow the JSON head; "
            f"its shape {list(tensor.shape)} needs {count * dtype.itemsize}"
        )
    # Takes a fifth of the time of frombuffer and reshape.
    return np.ndarray(tensor.shape, dtype, rest)


def _json_array(tensor: _Tensor, rest: memoryview, what: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    if not len(tensor.data):
        raise BadInput(f"{what} '{tensor.name}' has neither 'data' nor the parameter 'binary_data_size'")
    if len(rest):
        raise BadInput(f"{len(rest)} bytes follow the JSON head, but no tensor has 'binary_data_size'")
    return json_numbers.decode(tensor.data, tensor.shape, dtype, f"'data' of {what} '{tensor.name}'")


def _shortened(value: object) -> str:
    """A value that a client sent, cut to the length of a line."""
    text = str(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _likeliest(scores: NDArray[np.float32], count: int, classes: Sequence[str]) -> list[str]:
    """Score, index and name of the `count` likeliest classes of each row, of all classes if there are fewer."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return [f"{row[at]:f}:{at}:{classes[at]}" for row, places in zip(scores, best, strict=True) for at in places]


def _as_bytes(texts: list[str]) -> bytes:
    """Each text after its length in bytes, as four bytes, little-endian."""
    encoded = (text.encode() for text in texts)
    return b"".join(len(text).to_bytes(4, "little") + text for text in encoded)
