"""What the server answers, and what it refuses."""

import gzip
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from server_process import PATIENCE, Server, ask, read, serving

from medserve import wire
from medserve.empty import empty_artifact
from medserve.timing import now


@pytest.fixture(scope="module")
def null(empty: Path) -> Iterator[Server]:
    """The wrapper alone, one for all tests that leave it as it was."""
    with serving(empty, "--runtime", "null") as server:
        yield server


# What it answers


@pytest.mark.parametrize("form", ["torchscript", "onnx"])
@pytest.mark.parametrize("dispatch", ["inline", "thread"])
def test_served_scores_are_the_certified_ones(form: str, dispatch: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(form)
    with np.load(folder / "golden.npz") as golden:
        images, expected = golden["images"], golden["scores"]
    with serving(folder, "--dispatch", dispatch, "--batch-sizes", "1,8,32") as server:
        for batch in (1, 5, 32):
            for binary in (True, False):
                assert server.infer(images[:batch], binary=binary).scores == pytest.approx(expected[:batch], abs=1e-4)
        assert server.facts["runtime"]["threads"] == 1
        with ThreadPoolExecutor(8) as clients:
            answers = list(clients.map(lambda at: server.infer(images[at : at + 1]).scores, range(32)))
        assert np.concatenate(answers) == pytest.approx(expected, abs=1e-4)


def test_every_page_is_json(null: Server) -> None:
    assert null.ask("GET", "/v2").json["extensions"][0] == "binary_tensor_data"
    assert null.ask("GET", "/v2/health/live").json == {"live": True}
    assert null.ask("GET", "/v2/health/ready").json == {"ready": True}
    for model in (f"/v2/models/{null.model}", f"/v2/models/{null.model}/versions/1"):
        assert null.ask("GET", model).json["versions"] == ["1"]
        assert null.ask("GET", f"{model}/ready").json == {"name": null.model, "ready": True}
        assert null.ask("GET", f"{model}/config").json["input"][0]["dims"] == [28, 28, 3]


def test_a_version_may_be_named(null: Server, image: NDArray[np.uint8]) -> None:
    headers, body = wire.encode_request(image)
    answer = null.ask("POST", f"/v2/models/{null.model}/versions/1/infer", body, headers)
    assert answer.scores == pytest.approx(0.125)


@pytest.mark.parametrize("dispatch", ["inline", "thread"])
def test_an_answer_says_what_it_spent(empty: Path, image: NDArray[np.uint8], dispatch: str) -> None:
    with serving(empty, "--runtime", "null", "--dispatch", dispatch) as server:
        before = now()
        answer = server.infer(image)
        after = now()
    received, sent = map(int, answer.headers["medserve-clock"].split())
    stages = wire.parse_server_timing(answer.headers["server-timing"])
    assert list(stages) == ["queue", "decode", "infer", "encode"]
    assert before < received < sent < after
    assert 0 < sum(stages.values()) <= sent - received
    assert (stages["queue"] > 0) or dispatch == "inline"
    assert min(stages["decode"], stages["infer"], stages["encode"]) > 0


def test_a_body_may_come_in_pieces(null: Server, image: NDArray[np.uint8]) -> None:
    headers, body = wire.encode_request(image)
    whole = null.infer(image)
    with null.connected() as connection:
        connection.request("POST", null.infer_path, iter([body[:50], body[50:900], body[900:]]), headers)
        chunked = read(connection.getresponse())
        assert chunked.scores.tolist() == whole.scores.tolist()
        # The next request of the same connection is understood as well.
        assert ask(connection, "POST", null.infer_path, body, headers).status == 200


def test_a_body_above_the_high_water_mark_arrives(tmp_path: Path) -> None:
    images = np.zeros((64, 224, 224, 3), np.uint8)
    with serving(empty_artifact(tmp_path, 224), "--runtime", "null", "--batch-sizes", "64") as server:
        assert images.nbytes > 8 << 20
        assert server.infer(images).scores.shape == (64, 8)


def test_a_client_that_asks_before_it_sends_is_told_to_go_on(null: Server, image: NDArray[np.uint8]) -> None:
    headers, body = wire.encode_request(image)
    lines = [f"POST {null.infer_path} HTTP/1.1", "Host: x", "Expect: 100-continue", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    with socket.create_connection(null.address, PATIENCE) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 Continue")
        connection.sendall(body)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 OK")


def test_requests_may_be_sent_ahead(null: Server) -> None:
    with socket.create_connection(null.address, PATIENCE) as connection:
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\nGET /v2/health/ready HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.count(b"200 OK") == 2
    assert answer.endswith(b'{"ready":true}')


# What it refuses


def _json_request(**changes: Any) -> bytes:
    tensor = {"name": "image", "shape": [1, 28, 28, 3], "datatype": "UINT8", "data": [0] * 2352} | changes
    return json.dumps({"inputs": [{key: value for key, value in tensor.items() if value is not ...}]}).encode()


@pytest.mark.parametrize(
    ("body", "headers", "status", "expected"),
    [
        (_json_request(shape=[1, 64, 64, 3]), {}, 400, "expected [N, 28, 28, 3], N from 1 to 32"),
        (_json_request(shape=[33, 28, 28, 3]), {}, 400, "expected [N, 28, 28, 3], N from 1 to 32"),
        (_json_request(datatype="FP32"), {}, 400, "expected 'UINT8'"),
        (_json_request(name="x"), {}, 400, "expected a single input named 'image'"),
        (_json_request(data=[0] * 2351), {}, 400, "has 2351 elements; expected 2352 numbers"),
        (_json_request(parameters={"binary_data_size": -1}), {}, 400, "both 'data' and 'binary_data_size'"),
        (_json_request(), {"Inference-Header-Content-Length": "999999"}, 400, "expected a whole number up to"),
        (_json_request(), {"Inference-Header-Content-Length": "-5"}, 400, "expected a whole number up to"),
        (_json_request(), {"Content-Encoding": "br"}, 415, "Content-Encoding is 'br'; expected gzip or deflate"),
        (_json_request(), {"Content-Encoding": "gzip"}, 400, "the body is not gzip data"),
        (gzip.compress(_json_request())[:-1], {"Content-Encoding": "gzip"}, 400, "not a single complete gzip stream"),
        (gzip.compress(_json_request()) + b"x", {"Content-Encoding": "gzip"}, 400, "not a single complete gzip stream"),
        (gzip.compress(bytes(1 << 24)), {"Content-Encoding": "gzip"}, 413, "this model takes at most 32 images"),
        (b"", {}, 400, "not an Open Inference Protocol v2 request"),
        (b"\xff\xfe\x00", {}, 400, "not an Open Inference Protocol v2 request"),
        (b"[" * 200_000, {}, 400, "not an Open Inference Protocol v2 request"),
        (_json_request(data=[[]] * 150_000), {}, 400, "has 150000 elements; expected 2352 numbers"),
        (_json_request(shape=[1] * 200_000), {}, 400, "...; expected [N, 28, 28, 3]"),
        (_json_request(name="x" * 600_000), {}, 400, "xxx...; expected a single input named 'image'"),
        (_json_request(data=..., parameters={"binary_data_size": -1}), {}, 400, "has binary_data_size -1, and 0 bytes"),
        (_json_request(data=...), {}, 400, "neither 'data' nor the parameter 'binary_data_size'"),
        (bytes(1_000_000), {}, 413, "this model takes at most 32 images"),
    ],
)
def test_a_bad_request_is_told_what_was_expected(
    null: Server, image: NDArray[np.uint8], body: bytes, headers: dict[str, str], status: int, expected: str
) -> None:
    with null.connected() as connection:
        answer = ask(connection, "POST", null.infer_path, body, headers)
        assert answer.status == status
        assert expected in answer.error
        assert len(answer.body) < 1000
        # The same connection goes on with a good request.
        good, content = wire.encode_request(image)
        assert ask(connection, "POST", null.infer_path, content, good).scores == pytest.approx(0.125)


@pytest.mark.parametrize(
    ("method", "path", "status", "expected", "allow"),
    [
        ("GET", "/v2/models/{model}/infer", 405, "expected POST", "POST"),
        ("PUT", "/v2/models/{model}/infer", 405, "expected POST", "POST"),
        ("POST", "/v2/health/live", 405, "expected GET", "GET, HEAD"),
        ("POST", "/v2/models/nope/infer", 404, "unknown model 'nope'; there is: {model}", None),
        ("GET", "/v2/models/nope", 404, "unknown model 'nope'; there is: {model}", None),
        ("POST", "/v2/models/{model}/versions/2/infer", 404, "unknown version '2' of {model}; there is: 1", None),
        ("GET", "/", 404, "unknown path '/'; there is: /metrics, /openapi.json, /v2, /v2/health/live", None),
        ("GET", "/v2/models/{model}/stats", 404, "unknown path", None),
        ("GET", "/v2/models/%ff%00", 404, "unknown model", None),
        ("GET", "/v2/models/../../../etc/passwd", 404, "unknown model '..'", None),
        ("GET", "/v2/models/%2e%2e%2fartifact.json", 404, "unknown model '..'", None),
        ("POST", "/v2/models/{model}/versions/../infer", 404, "unknown version '..'", None),
    ],
)
def test_what_there_is_not_is_told_what_there_is(
    null: Server, method: str, path: str, status: int, expected: str, allow: str | None
) -> None:
    answer = null.ask(method, path.format(model=null.model), b"body" if method != "GET" else b"")
    assert answer.status == status
    assert expected.format(model=null.model) in answer.error
    assert answer.headers.get("allow") == allow


@pytest.mark.parametrize(
    "content",
    [
        b"garbage\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /v2 HTTP/1.1\r\nbad header\r\n\r\n",
        b"GET /v2\xff HTTP/1.1\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
def test_what_is_not_http_gets_json_and_the_server_goes_on(
    null: Server, image: NDArray[np.uint8], content: bytes
) -> None:
    answer = null.raw(content)
    assert answer.status == 400
    assert "Expected HTTP/1.1" in answer.error
    assert answer.headers["connection"] == "close"
    assert null.infer(image).status == 200


def test_a_body_that_is_announced_too_large_is_not_awaited(null: Server, image: NDArray[np.uint8]) -> None:
    answer = null.raw(f"POST {null.infer_path} HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000000000\r\n\r\n".encode())
    assert answer.status == 413
    assert "this model takes at most 32 images" in answer.error
    assert null.infer(image).status == 200


def test_an_endless_body_is_refused_at_the_limit(empty: Path, image: NDArray[np.uint8]) -> None:
    """Chunks announce no length. The limit of this deployment lies far below what the loop would send."""
    with serving(empty, "--runtime", "null") as server:
        used = psutil.Process(server.child.pid).memory_info().rss
        with server.connected() as connection:
            connection.request("POST", server.infer_path, (bytes(1 << 20) for _ in range(64)))
            assert read(connection.getresponse()).status == 413
        assert psutil.Process(server.child.pid).memory_info().rss < used + (32 << 20)
        assert server.infer(image).status == 200


def test_a_client_that_hangs_up_harms_nobody(null: Server, image: NDArray[np.uint8]) -> None:
    for content in (b"", b"POST", f"POST {null.infer_path} HTTP/1.1\r\nContent-Length: 500\r\n\r\nhalf".encode()):
        with socket.create_connection(null.address, PATIENCE) as connection:
            connection.sendall(content)
    assert null.infer(image).status == 200
