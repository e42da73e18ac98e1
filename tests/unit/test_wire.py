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

from medserve import json_numbers, wire
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


@given(
    image_batches(), st.booleans(), st.sampled_from([None, 1, "\t"]), st.integers(1, 99) | st.just(json_numbers.BLOCK)
)
def test_json_numbers_are_read_flat_or_nested_with_any_blanks(
    images: NDArray[np.uint8], nested: bool, indent: int | str | None, block: int
) -> None:
    data = images.tolist() if nested else images.ravel().tolist()
    tensor = {"name": "image", "shape": images.shape, "datatype": "UINT8", "data": data}
    height, width, channels = images.shape[1:]
    body = json.dumps({"inputs": [tensor]}, indent=indent).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_numbers, "BLOCK", block)
        assert np.array_equal(wire.decode_request(body, None, (height, width, channels)).images, images)


@given(st.lists(st.integers(-1000, 3000) | st.integers(0, 255), min_size=36, max_size=36))
def test_a_number_that_is_no_pixel_is_refused(numbers: list[int]) -> None:
    if min(numbers) >= 0 and max(numbers) <= 255:
        assert wire.decode_request(request_of(data=numbers), None, SHAPE).images.ravel().tolist() == numbers
    else:
        with pytest.raises(BadInput, match="whole numbers from 0 to 255"):
            wire.decode_request(request_of(data=numbers), None, SHAPE)


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


def test_a_number_beyond_float32_is_refused() -> None:
    tensor = {"name": "probabilities", "shape": [1, 2], "datatype": "FP32", "data": [0.5, 1e39]}
    with pytest.raises(BadInput, match="a number that float32 cannot hold"):
        wire.decode_response(json.dumps({"model_name": "m", "outputs": [tensor]}).encode(), None)


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
        (request_of(name="picture"), None, "expected a single input named 'image'"),
        (
            request_of(data=[7] * 35),
            None,
            r"has 35 elements; expected 36 numbers, flat or nested as \[1, 3, 4, 3\]",
        ),
        (request_of(data=[[7] * 18] * 2), None, "has 36 elements; expected 36 numbers"),
        (request_of(data=[256] * 36), None, "whole numbers from 0 to 255"),
        (request_of(data=[-1] * 36), None, "whole numbers from 0 to 255"),
        (request_of(data=[0.5] * 36), None, "whole numbers from 0 to 255"),
        (request_of(data=["a"] * 36), None, "whole numbers from 0 to 255"),
        (request_of(data=[[1], [2, 3]]), None, "has 3 elements"),
        (request_of(data=7), None, "has 1 elements"),
        (request_of(data=[1000] * 36), None, "whole numbers from 0 to 255"),
        (request_of(data=[True] * 36), None, "whole numbers from 0 to 255"),
        (request_of(data=[float("nan")] * 36), None, "not an Open Inference Protocol v2 request"),
        (request_of(data=...), None, "neither 'data' nor the parameter 'binary_data_size'"),
        (request_of(parameters=BINARY), None, "both 'data' and 'binary_data_size'"),
        (request_of(data=..., parameters=BINARY), None, "has binary_data_size 36, and 0 bytes follow"),
        (request_of(data=..., parameters={"binary_data_size": -36}), None, "has binary_data_size -36"),
        (request_of() + b"x", str(len(request_of())), "1 bytes follow the JSON head"),
        (request_of(), "9999", "expected a whole number up to the body's"),
        (request_of(), "-1", "expected a whole number"),
        (request_of(), "٣", "expected a whole number"),
        (b"", None, "not an Open Inference Protocol v2 request"),
        (b'{"inputs": []}', None, "expected a single input named 'image'"),
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
            {"outputs": [{"name": "probabilities", "parameters": {"classification": 0}}]},
            r"Expected `int` >= 1 - at `\$\.outputs\[0\]\.parameters\.classification`",
        ),
        ({"parameters": {"timeout": -1}}, r"Expected `int` >= 0 - at `\$\.parameters\.timeout`"),
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


@pytest.mark.parametrize(("timeout", "within"), [(5, 5_000), (0, None), (None, None)])
def test_a_timeout_is_in_microseconds(timeout: int | None, within: int | None) -> None:
    body = json.dumps(json.loads(request_of()) | {"parameters": {"timeout": timeout}}).encode()
    assert wire.decode_request(body, None, SHAPE).timeout_ns == within


@pytest.mark.parametrize("binary", [True, False])
def test_the_likeliest_classes_are_texts(binary: bool) -> None:
    """As Triton's extension has them: score, index, name."""
    scores = np.array([[0.125, 0.625, 0.25], [0.75, 0.125, 0.125]], np.float32)
    request = wire.Request(np.zeros((2, *SHAPE), np.uint8), None, binary, likeliest=2)
    headers, body = wire.encode_response("m", "1", scores, request, ("ö", "b", "c"))
    length = dict(headers).get(b"inference-header-content-length")
    (output,) = json.loads(body[: int(length)] if length else body)["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 2])
    texts = ["0.625000:1:b", "0.250000:2:c", "0.750000:0:ö", "0.125000:1:b"]
    if binary:
        raw = b"".join(len(text.encode()).to_bytes(4, "little") + text.encode() for text in texts)
        assert (body[int(length or 0) :], output["parameters"]) == (raw, {"binary_data_size": len(raw)})
    else:
        assert output["data"] == texts


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
