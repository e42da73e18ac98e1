"""Requests and answers of other servers: every plug-in says the same image, and refuses what it cannot read."""

import email
import io
import json

import msgspec
import numpy as np
import pytest
from PIL import Image

from loadtest.generator import payload
from loadtest.generator.payload import Load
from medserve import plugins, wire
from medserve.errors import BadInput
from medserve.spec import BODIES
from medserve.tables import profile

IMAGES = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3), np.uint8)
SCORES = np.array([[0.125, 0.875]], np.float32)
LOAD = Load(url="http://127.0.0.1:8000/", model="cells", profile=profile("closed-loop", users=1))


def oip(headers: dict[str, str], body: bytes) -> np.ndarray:
    return wire.decode_request(body, headers.get(wire.HEAD_LENGTH), (4, 4, 3)).images


def posted(headers: dict[str, str], body: bytes) -> np.ndarray:
    message = email.message_from_bytes(f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode() + body)
    (part,) = message.get_payload()
    assert part.get_param("name", header="Content-Disposition") == "file"
    return np.asarray(Image.open(io.BytesIO(part.get_payload(decode=True))))[None]


SAID = {
    "oip": oip,
    "oip_json": oip,
    "instances": lambda headers, body: np.array(json.loads(body)["instances"]),
    "image_bytes": lambda headers, body: np.frombuffer(body, np.uint8).reshape(IMAGES.shape),
    "multipart": posted,
}
ANSWERS = {
    "oip": b'{"model_name":"m","outputs":[{"name":"probabilities","datatype":"FP32","shape":[1,2],'
    b'"data":[0.125,0.875]}]}',
    "instances": b'{"predictions": [[0.125, 0.875]], "more": 1}',
    "image_bytes": SCORES.tobytes(),
}
ANSWERS |= {"oip_json": ANSWERS["oip"], "multipart": ANSWERS["instances"]}


@pytest.mark.parametrize("name", plugins.names(BODIES))
def test_a_body_says_the_image_and_reads_the_scores(name: str) -> None:
    body = plugins.load(BODIES, name)
    assert np.array_equal(SAID[name](*body.encode(IMAGES)), IMAGES)
    assert np.array_equal(body.decode(ANSWERS[name], None), SCORES)
    (path,) = plugins.literals(BODIES, name)["PATH"]
    sent = msgspec.structs.replace(LOAD, body=name)
    assert payload.target(sent) == "http://127.0.0.1:8000" + path.format(model="cells")
    assert payload.target(msgspec.structs.replace(sent, path="/p")) == "http://127.0.0.1:8000/p"


@pytest.mark.parametrize("name", plugins.names(BODIES))
@pytest.mark.parametrize("answer", [b"", b"{}", b"abc", b'{"predictions": [["x"]] }', b'{"predictions":[[1],[1,2]]}'])
def test_another_answer_is_refused(name: str, answer: bytes) -> None:
    with pytest.raises(BadInput):
        plugins.load(BODIES, name).decode(answer, None)


@pytest.mark.parametrize("name", ["image_bytes", "multipart"])
def test_a_body_of_one_image_takes_no_batch(name: str) -> None:
    with pytest.raises(BadInput, match="holds one image, not 2"):
        plugins.load(BODIES, name).encode(np.concatenate([IMAGES, IMAGES]))


def test_a_profile_of_json_numbers_changes_our_own_body_alone() -> None:
    json_numbers = profile("closed-loop", users=1, payload="json")
    assert payload.body_of(msgspec.structs.replace(LOAD, profile=json_numbers)).__name__.endswith("oip_json")
    assert payload.body_of(LOAD).__name__.endswith(".oip")
