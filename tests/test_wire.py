"""The wire: what is sent is what is received, and no bytes at all make it raise anything but BadInput."""

import json
from contextlib import suppress
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from medserve import wire
from medserve.errors import BadInput

SHAPE = (3, 4, 3)

ids = st.none() | st.text()
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def image_batches(draw: st.DrawFn) -> NDArray[np.uint8]:
    shape = (draw(st.integers(1, 6)), draw(st.integers(1, 9)), draw(st.integers(1, 9)), 3)
    return np.random.default_rng(draw(st.integers(0, 2**32))).integers(0, 256, shape, np.uint8)


@st.composite
def mutations(draw: st.DrawFn, whole: bytes) -> bytes:
    """`whole` with a few bytes replaced, inserted or cut out."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(content)))
        content[at : at + draw(st.integers(0, 6))] = draw(st.binary(max_size=6))
    return bytes(content)


def request_of(**changes: Any) -> bytes:
    """A JSON request of one image of SHAPE, with fields of its tensor replaced."""
    tensor = {"name": "image", "shape": [1, *SHAPE], "datatype": "UINT8", "data": [7] * 36} | changes
    return json.dumps({"inputs": [{key: value for key, value in tensor.items() if value is not ...}]}).encode()


def head_length(headers: dict[str, str]) -> str | None:
    return headers.get(wire.HEAD_LENGTH)


@given(image_batches(), st.booleans(), ids)
def test_a_request_survives_the_wire(images: NDArray[np.uint8], binary: bool, id: str | None) -> None:
    headers, body = wire.encode_request(images, binary=binary, id=id)
    height, width, channels = images.shape[1:]
    request = wire.decode_request(body, head_length(headers), (height, width, channels))
    assert np.array_equal(request.images, images)
    assert request.images.dtype == np.uint8
    assert request.images.flags.c_contiguous
    assert (request.id, request.binary) == (id, binary)


@given(st.integers(1, 6), st.integers(1, 9), st.booleans(), ids, st.integers(0, 2**32))
def test_a_response_survives_the_wire(count: int, classes: int, binary: bool, id: str | None, seed: int) -> None:
    scores = np.random.default_rng(seed).dirichlet(np.ones(classes), count).astype(np.float32)
    request = wire.Request(images=np.zeros((count, *SHAPE), np.uint8), id=id, binary=binary)
    headers, body = wire.encode_response("model", "1", scores, request)
    length = {name.decode(): value.decode() for name, value in headers}.get(wire.HEAD_LENGTH.lower())
    assert (length is not None) == binary
    assert np.array_equal(wire.decode_response(body, length), scores)
    head = json.loads(body[: int(length)] if length else body)
    assert head.get("id") == id
    assert (head["model_name"], head["model_version"]) == ("model", "1")


def test_scores_cut_from_a_larger_array_survive() -> None:
    scores = np.arange(24, dtype=np.float32).reshape(8, 3)[::2]
    request = wire.Request(images=np.zeros((4, *SHAPE), np.uint8), id=None, binary=True)
    headers, body = wire.encode_response("model", "1", scores, request)
    assert np.array_equal(
        wire.decode_response(body, dict(headers)[b"inference-header-content-length"].decode()), scores
    )


def test_images_cut_from_a_larger_array_survive() -> None:
    images = np.arange(4 * 6 * 8 * 3, dtype=np.uint8).reshape(4, 6, 8, 3)[::2, ::2, ::2]
    headers, body = wire.encode_request(images)
    assert np.array_equal(wire.decode_request(body, head_length(headers), (3, 4, 3)).images, images)


def test_nested_json_data_is_taken_as_flat_data() -> None:
    images = np.arange(36, dtype=np.uint8).reshape(1, *SHAPE)
    assert np.array_equal(wire.decode_request(request_of(data=images.tolist()), None, SHAPE).images, images)


@given(st.data())
def test_mutated_requests_are_refused_or_right_in_shape(data: st.DataObject) -> None:
    binary = data.draw(st.booleans())
    headers, body = wire.encode_request(np.full((2, *SHAPE), 9, np.uint8), binary=binary, id="a")
    length = data.draw(st.just(head_length(headers)) | st.none() | st.text(max_size=14))
    try:
        request = wire.decode_request(data.draw(mutations(body)), length, SHAPE)
    except BadInput:
        return
    assert request.images.shape[1:] == SHAPE
    assert request.images.dtype == np.uint8


@given(st.data())
def test_mutated_responses_are_refused_or_arrays(data: st.DataObject) -> None:
    request = wire.Request(images=np.zeros((2, *SHAPE), np.uint8), id="a", binary=data.draw(st.booleans()))
    headers, body = wire.encode_response("model", "1", np.full((2, 8), 0.125, np.float32), request)
    right = dict(headers).get(b"inference-header-content-length")
    length = data.draw(st.just(right and right.decode()) | st.none() | st.text(max_size=14))
    with suppress(BadInput):
        assert wire.decode_response(data.draw(mutations(body)), length).dtype == np.float32


@given(st.sampled_from(["name", "shape", "datatype", "parameters", "data"]), json_values)
def test_any_json_value_in_any_field_is_refused_or_understood(field: str, value: Any) -> None:
    body = request_of(**{field: value})
    with suppress(BadInput):
        assert wire.decode_request(body, None, SHAPE).images.shape == (1, *SHAPE)


@given(st.sampled_from(["name", "shape", "datatype", "parameters", "data"]), json_values)
def test_any_json_value_in_any_field_of_a_response_is_refused_or_understood(field: str, value: Any) -> None:
    tensor = {"name": "probabilities", "shape": [1, 2], "datatype": "FP32", "data": [0.5, 0.5]} | {field: value}
    body = json.dumps({"model_name": "m", "outputs": [tensor]}).encode()
    with suppress(BadInput):
        assert wire.decode_response(body, None).dtype == np.float32


@given(st.binary(max_size=200), st.none() | st.text(max_size=14))
def test_noise_is_refused(body: bytes, length: str | None) -> None:
    with pytest.raises(BadInput):
        wire.decode_request(body, length, SHAPE)
    with pytest.raises(BadInput):
        wire.decode_response(body, length)


BINARY = {"binary_data_size": 36}


@pytest.mark.parametrize(
    ("body", "length", "expected"),
    [
        (request_of(shape=[1, 4, 3, 3]), None, r"has shape \[1, 4, 3, 3\]; expected \[N, 3, 4, 3\], N from 1 to 8"),
        (request_of(shape=[0, *SHAPE]), None, "N from 1 to 8"),
        (request_of(shape=[-1, *SHAPE]), None, "N from 1 to 8"),
        (request_of(shape=[9, *SHAPE]), None, "N from 1 to 8"),
        (request_of(shape=list(SHAPE)), None, "expected .N, 3, 4, 3."),
        (request_of(datatype="FP32"), None, "datatype 'FP32'; expected 'UINT8'"),
        (request_of(name="picture"), None, "expected exactly one, named 'image'"),
        (request_of(data=[7] * 35), None, r"has shape \[35\]; expected \[1, 3, 4, 3\] or flat"),
        (request_of(data=[[7] * 18] * 2), None, r"has shape \[2, 18\]; expected"),
        (request_of(data=[256] * 36), None, "whole numbers from 0 to 255"),
        (request_of(data=[-1] * 36), None, "whole numbers from 0 to 255"),
        (request_of(data=[0.5] * 36), None, "whole numbers from 0 to 255"),
        (request_of(data=["a"] * 36), None, "whole numbers from 0 to 255"),
        (request_of(data=[[1], [2, 3]]), None, "not a list of numbers"),
        (request_of(data=...), None, "neither 'data' nor the parameter 'binary_data_size'"),
        (request_of(parameters=BINARY), None, "both 'data' and 'binary_data_size'"),
        (request_of(data=..., parameters=BINARY), None, "says binary_data_size 36 and 0 bytes follow"),
        (request_of(data=..., parameters={"binary_data_size": -36}), None, "says binary_data_size -36"),
        (request_of() + b"x", str(len(request_of())), "1 bytes follow the JSON head"),
        (request_of(), "9999", "expected a whole number up to the body's"),
        (request_of(), "-1", "expected a whole number"),
        (request_of(), "٣", "expected a whole number"),
        (b"", None, "not an Open Inference Protocol v2 request"),
        (b'{"inputs": []}', None, "expected exactly one, named 'image'"),
    ],
)
def test_a_refusal_says_what_was_expected(body: bytes, length: str | None, expected: str) -> None:
    with pytest.raises(BadInput, match=expected):
        wire.decode_request(body, length, SHAPE, 8)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"outputs": [{"name": "logits"}]}, "outputs are .'logits'.; expected only 'probabilities'"),
        (
            {"outputs": [{"name": "probabilities", "parameters": {"classification": 3}}]},
            "the parameter 'classification' is not offered",
        ),
    ],
)
def test_an_output_that_there_is_not_is_refused(more: dict[str, Any], expected: str) -> None:
    with pytest.raises(BadInput, match=expected):
        wire.decode_request(json.dumps(json.loads(request_of()) | more).encode(), None, SHAPE)


@pytest.mark.parametrize(
    ("more", "binary"),
    [
        ({}, False),
        ({"parameters": {"binary_data_output": True}}, True),
        ({"outputs": [{"name": "probabilities"}], "parameters": {"binary_data_output": True}}, True),
        (
            {
                "outputs": [{"name": "probabilities", "parameters": {"binary_data": False}}],
                "parameters": {"binary_data_output": True},
            },
            False,
        ),
        ({"outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}]}, True),
    ],
)
def test_the_request_says_how_scores_go_back(more: dict[str, Any], binary: bool) -> None:
    """As Triton's extension has it: the output's own parameter wins over the request's."""
    body = json.dumps(json.loads(request_of()) | more).encode()
    assert wire.decode_request(body, None, SHAPE).binary is binary


def test_what_other_clients_send_beside_is_ignored() -> None:
    body = request_of(parameters={"shape_hint": 1})
    body = body[:-1] + b', "parameters": {"priority": 3, "timeout": 5}}'
    assert wire.decode_request(body, None, SHAPE).images.shape == (1, *SHAPE)


nanoseconds = st.integers(0, 10**14)


@given(nanoseconds, nanoseconds, nanoseconds, nanoseconds)
def test_server_timing_keeps_every_nanosecond(queue: int, decode: int, infer: int, encode: int) -> None:
    value = wire.server_timing(queue, decode, infer, encode).decode()
    stages = {"queue": queue, "decode": decode, "infer": infer, "encode": encode}
    assert wire.parse_server_timing(value) == stages


@given(st.text() | st.from_regex(r'[a-z]{1,3};dur="?[0-9.einfa-]{0,6}"?(, )?'))
def test_any_server_timing_can_be_read(value: str) -> None:
    assert all(isinstance(duration, int) for duration in wire.parse_server_timing(value).values())


def test_server_timing_of_other_servers_is_read() -> None:
    value = 'cache;desc="hit, or miss";dur=0.5,db;DUR=2, total, bad;dur=x'
    assert wire.parse_server_timing(value) == {'or miss"': 500_000, "db": 2_000_000}


@pytest.mark.parametrize("shape", [[2], [-1, -2], [1, 1, 2], [0, 2], [1, 2**40]])
def test_scores_of_an_odd_shape_are_refused(shape: list[int]) -> None:
    tensor = {"name": "probabilities", "shape": shape, "datatype": "FP32", "data": [0.5, 0.5]}
    with pytest.raises(BadInput, match="shape"):
        wire.decode_response(json.dumps({"model_name": "m", "outputs": [tensor]}).encode(), None)


def test_a_request_too_deep_is_refused() -> None:
    with pytest.raises(BadInput):
        wire.decode_request(b'{"inputs":' + b"[" * 100_000, None, SHAPE)
    with pytest.raises(BadInput):
        wire.decode_request(request_of(data=...)[:-2] + b',"data":' + b"[" * 9_000 + b"]" * 9_000 + b"}]}", None, SHAPE)


def test_the_head_is_json_that_anyone_reads() -> None:
    headers, body = wire.encode_request(np.zeros((2, *SHAPE), np.uint8), id="a")
    head = msgspec.json.decode(body[: int(headers[wire.HEAD_LENGTH])])
    assert head == {
        "id": "a",
        "inputs": [
            {
                "name": "image",
                "shape": [2, *SHAPE],
                "datatype": "UINT8",
                "parameters": {"binary_data_size": 72},
            }
        ],
        "outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}],
    }
