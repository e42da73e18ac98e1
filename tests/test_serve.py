"""The server as a process: what it answers, what it refuses, how it starts and how it ends."""

import asyncio
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from medserve import machine, process, store, wire
from medserve.errors import EVENTS
from medserve.spec import Deployment
from medserve.timing import now
from serve import scheduler
from serve.app import App
from serve.benchmark import empty_artifact

PATIENCE = 60


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)

    @property
    def error(self) -> str:
        assert set(self.json) == {"error"}
        error: str = self.json["error"]
        return error

    @property
    def scores(self) -> NDArray[np.float32]:
        assert self.status == 200, self.body
        return wire.decode_response(self.body, self.headers.get(wire.HEAD_LENGTH.lower()))


@dataclass
class Server:
    url: str
    model: str
    facts: dict[str, Any]
    child: "subprocess.Popen[bytes]"

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port

    @property
    def infer_path(self) -> str:
        return f"/v2/models/{self.model}/infer"

    @contextmanager
    def connected(self) -> Iterator[http.client.HTTPConnection]:
        connection = http.client.HTTPConnection(*self.address, timeout=PATIENCE)
        try:
            yield connection
        finally:
            connection.close()

    def ask(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Answer:
        with self.connected() as connection:
            return ask(connection, method, path, body, headers or {})

    def infer(self, images: NDArray[np.uint8], *, binary: bool = True, id: str | None = None) -> Answer:
        headers, body = wire.encode_request(images, binary=binary, id=id)
        return self.ask("POST", self.infer_path, body, headers)

    def raw(self, content: bytes) -> Answer:
        """Send bytes as they are, read one answer until the server closes."""
        with socket.create_connection(self.address, PATIENCE) as connection:
            connection.sendall(content)
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            return _read(answer)


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
    connection.request(method, path, body, headers)
    return _read(connection.getresponse())


def _read(answer: http.client.HTTPResponse) -> Answer:
    return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())


@contextmanager
def serving(folder: Path, *words: str) -> Iterator[Server]:
    """A server process that is ready, on a free port."""
    child = process.start(
        ["-m", "serve", str(folder), "--port", "0", *words], stdout=subprocess.PIPE, env={EVENTS: "1"}
    )
    assert child.stdout is not None
    try:
        event = json.loads(child.stdout.readline() or b'{"event": "none"}')
        assert event["event"] == "ready", event
        assert event["pid"] == child.pid
        yield Server(event["url"], event["model"], event["process"], child)
    finally:
        process.stop(child)
        child.stdout.close()


def refused(*words: str) -> "subprocess.CompletedProcess[str]":
    """The end of a server that must not start."""
    return subprocess.run(
        [sys.executable, "-m", "serve", *words], capture_output=True, text=True, timeout=PATIENCE, check=False
    )


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return empty_artifact(tmp_path_factory.mktemp("empty"), 28)


@pytest.fixture(scope="module")
def null(empty: Path) -> Iterator[Server]:
    """The wrapper alone, one for all tests that leave it as it was."""
    with serving(empty, "--runtime", "null") as server:
        yield server


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, (1, 28, 28, 3), np.uint8)


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


@pytest.mark.parametrize("form", ["torchscript", "onnx"])
def test_tritons_own_client_works(form: str, request: pytest.FixtureRequest) -> None:
    client_library = pytest.importorskip("tritonclient.http")
    folder: Path = request.getfixturevalue(form)
    with np.load(folder / "golden.npz") as golden:
        images, expected = golden["images"][:3], golden["scores"][:3]
    with serving(folder) as server:
        client = client_library.InferenceServerClient(server.url.removeprefix("http://"))
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(folder.name)
        assert client.is_model_ready(folder.name, "1")
        assert not client.is_model_ready("other")
        assert client.get_server_metadata()["name"] == "medserve"
        metadata = client.get_model_metadata(folder.name)
        assert metadata["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 28, 28, 3]}]
        assert metadata["outputs"] == [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 8]}]
        assert client.get_model_config(folder.name, "1")["max_batch_size"] == 32
        for in_binary in (True, False):
            tensor = client_library.InferInput("image", list(images.shape), "UINT8")
            tensor.set_data_from_numpy(images, binary_data=in_binary)
            outputs = [client_library.InferRequestedOutput("probabilities", binary_data=flag) for flag in (True, False)]
            for chosen in (None, outputs[:1], outputs[1:]):
                result = client.infer(folder.name, [tensor], outputs=chosen, request_id="seven")
                assert result.as_numpy("probabilities") == pytest.approx(expected, abs=1e-4)
                assert result.get_response()["id"] == "seven"
                assert ("data" in result.get_output("probabilities")) == (chosen == outputs[1:])
        with pytest.raises(Exception, match="expected only 'probabilities'"):
            client.infer(folder.name, [tensor], outputs=[client_library.InferRequestedOutput("logits")])
        with pytest.raises(Exception, match="expected an uncompressed body"):
            client.infer(folder.name, [tensor], request_compression_algorithm="gzip")
        client.close()


def test_every_page_is_json(null: Server) -> None:
    assert null.ask("GET", "/v2").json["extensions"] == ["binary_tensor_data", "model_configuration"]
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
        chunked = _read(connection.getresponse())
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
    return json.dumps({"inputs": [tensor]}).encode()


@pytest.mark.parametrize(
    ("body", "headers", "status", "expected"),
    [
        (_json_request(shape=[1, 64, 64, 3]), {}, 400, "expected [N, 28, 28, 3], N from 1 to 32"),
        (_json_request(shape=[33, 28, 28, 3]), {}, 400, "expected [N, 28, 28, 3], N from 1 to 32"),
        (_json_request(datatype="FP32"), {}, 400, "expected 'UINT8'"),
        (_json_request(name="x"), {}, 400, "expected exactly one, named 'image'"),
        (_json_request(data=[0] * 2351), {}, 400, "has shape [2351]; expected"),
        (_json_request(parameters={"binary_data_size": -1}), {}, 400, "both 'data' and 'binary_data_size'"),
        (_json_request(), {"Inference-Header-Content-Length": "999999"}, 400, "expected a whole number up to"),
        (_json_request(), {"Inference-Header-Content-Length": "-5"}, 400, "expected a whole number up to"),
        (_json_request(), {"Content-Encoding": "gzip"}, 415, "expected an uncompressed body"),
        (b"", {}, 400, "not an Open Inference Protocol v2 request"),
        (b"\xff\xfe\x00", {}, 400, "not an Open Inference Protocol v2 request"),
        (b"[" * 200_000, {}, 400, "not an Open Inference Protocol v2 request"),
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
        # The same connection goes on with a good request.
        good, content = wire.encode_request(image)
        assert ask(connection, "POST", null.infer_path, content, good).scores == pytest.approx(0.125)


@pytest.mark.parametrize(
    ("method", "path", "status", "expected", "allow"),
    [
        ("GET", "/v2/models/{model}/infer", 405, "expected POST", "POST"),
        ("PUT", "/v2/models/{model}/infer", 405, "expected POST", "POST"),
        ("POST", "/v2/health/live", 405, "expected GET", "GET"),
        ("POST", "/v2/models/nope/infer", 404, "unknown model 'nope'; there is: {model}", None),
        ("GET", "/v2/models/nope", 404, "unknown model 'nope'; there is: {model}", None),
        ("POST", "/v2/models/{model}/versions/2/infer", 404, "unknown version '2' of {model}; there is: 1", None),
        ("GET", "/", 404, "unknown path '/'; there is: /v2, /v2/health/live", None),
        ("GET", "/v2/models/{model}/stats", 404, "unknown path", None),
        ("GET", "/v2/models/%ff%00", 404, "unknown model", None),
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
            assert _read(connection.getresponse()).status == 413
        assert psutil.Process(server.child.pid).memory_info().rss < used + (32 << 20)
        assert server.infer(image).status == 200


def test_a_client_that_hangs_up_harms_nobody(null: Server, image: NDArray[np.uint8]) -> None:
    for content in (b"", b"POST", f"POST {null.infer_path} HTTP/1.1\r\nContent-Length: 500\r\n\r\nhalf".encode()):
        with socket.create_connection(null.address, PATIENCE) as connection:
            connection.sendall(content)
    assert null.infer(image).status == 200


# The scheduler


def call(app: App, body: bytes, headers: dict[str, str]) -> "asyncio.Task[Answer]":
    """One infer request to the application itself, as a task of the running loop."""
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {"path": "/v2/models/empty/infer", "method": "POST", "headers": pairs}
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    async def run() -> Answer:
        await app(scope, receive, send)
        fields = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return Answer(sent[0]["status"], fields, sent[1]["body"])

    return asyncio.get_running_loop().create_task(run())


def application(empty: Path, predict: scheduler.Predict, **fields: Any) -> App:
    deployment = Deployment(artifact="empty", runtime="null", **fields)
    return App(store.read_artifact(empty), deployment, scheduler.dispatch(predict, deployment))


def test_a_full_queue_says_503_and_the_others_are_served_in_order(empty: Path, image: NDArray[np.uint8]) -> None:
    running, release = threading.Event(), threading.Event()
    order: list[int] = []

    def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        running.set()
        assert release.wait(PATIENCE)
        order.append(int(images[0, 0, 0, 0]))
        return np.full((len(images), 8), 0.125, np.float32)

    async def main() -> Sequence[Answer]:
        app = application(empty, predict, dispatch="thread", queue=2)
        requests = [wire.encode_request(np.full_like(image, value)) for value in range(4)]
        tasks = [call(app, requests[0][1], requests[0][0])]
        # One request is being predicted, two wait, the fourth is one too many.
        await asyncio.to_thread(running.wait, PATIENCE)
        for headers, body in requests[1:]:
            tasks.append(call(app, body, headers))
            await asyncio.sleep(0)
        refused = await tasks[3]
        release.set()
        return [*await asyncio.gather(*tasks[:3]), refused]

    *served, refused = asyncio.run(main())
    assert [answer.status for answer in served] == [200, 200, 200]
    assert order == [0, 1, 2]
    assert refused.status == 503
    assert refused.headers["retry-after"] == "1"
    assert "queue" in refused.error


@pytest.mark.parametrize("dispatch", ["inline", "thread"])
def test_a_runtime_that_fails_is_a_500_and_the_next_request_is_served(
    empty: Path, image: NDArray[np.uint8], dispatch: str, caplog: pytest.LogCaptureFixture
) -> None:
    failures = iter([RuntimeError("out of memory on device 0"), None])

    def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if failure := next(failures):
            raise failure
        return np.full((len(images), 8), 0.125, np.float32)

    async def main() -> list[Answer]:
        app = application(empty, predict, dispatch=dispatch)
        headers, body = wire.encode_request(image)
        return [await call(app, body, headers), await call(app, body, headers)]

    failed, good = asyncio.run(main())
    assert failed.status == 500
    assert failed.error == "the runtime failed: RuntimeError: out of memory on device 0"
    assert "Traceback" in caplog.text
    assert good.status == 200


def test_the_thread_leaves_the_event_loop_free(empty: Path, image: NDArray[np.uint8]) -> None:
    release = threading.Event()

    def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert release.wait(PATIENCE)
        return np.full((len(images), 8), 0.125, np.float32)

    async def main() -> tuple[Answer, Answer]:
        app = application(empty, predict, dispatch="thread")
        headers, body = wire.encode_request(image)
        waiting = call(app, body, headers)
        refused = await call(app, b"", {})
        release.set()
        return refused, await waiting

    refused, served = asyncio.run(main())
    assert (refused.status, served.status) == (400, 200)


def test_a_request_that_is_cut_off_is_told_and_does_not_stop_the_thread(
    empty: Path, image: NDArray[np.uint8], caplog: pytest.LogCaptureFixture
) -> None:
    running, release = threading.Event(), threading.Event()

    def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        running.set()
        assert release.wait(PATIENCE)
        return np.full((len(images), 8), 0.125, np.float32)

    async def main() -> tuple[Answer, Answer]:
        app = application(empty, predict, dispatch="thread")
        headers, body = wire.encode_request(image)
        cut_off = call(app, body, headers)
        await asyncio.to_thread(running.wait, PATIENCE)
        cut_off.cancel()
        answer = await cut_off
        release.set()
        return answer, await call(app, body, headers)

    cut_off, served = asyncio.run(main())
    assert (cut_off.status, cut_off.error) == (503, "the server is stopping")
    assert caplog.text == ""
    assert served.status == 200


def test_the_benchmark_of_the_wrapper_measures_both() -> None:
    words = ["-m", "serve.benchmark", "--sizes", "28,224", "--blocks", "2", "--requests", "20", "--json"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    small, large = json.loads(done.stdout)
    assert (small["size"], small["requests"], small["target"]) == (28, 40, 25.0)
    assert (large["size"], large["requests"], large["target"]) == (224, 40, 60.0)
    for cost in (small, large):
        assert min(cost["bare_p50"], cost["wrapper_p50"]) > 0
        assert cost["difference_low"] <= cost["difference"] <= cost["difference_high"]


# How it starts


def test_the_ready_event_says_what_runs(empty: Path) -> None:
    cpu = machine.usable_cpus()[-1]
    deployment = Deployment(artifact="empty", runtime="null", threads=1, dispatch="thread")
    words = ["--deployment", msgspec.json.encode(deployment).decode(), "--cpus", str(cpu)]
    with serving(empty, *words) as server:
        facts = server.facts
        assert facts["affinity"] == [cpu] == list(psutil.Process(server.child.pid).cpu_affinity())
        assert facts["openmp_threads"] == "1"
        assert facts["event_loop"] == "uvloop.Loop"
        assert facts["http_protocol"] == "serve.protocol.Protocol"
        assert facts["frozen_objects"] > 10_000
        assert facts["runtime"]["runtime"] == "null"
        assert server.model == "empty"


def test_a_person_reads_a_line(empty: Path) -> None:
    words = ["-m", "serve", str(empty), "--runtime", "null", "--port", "0"]
    child = process.start(words, stdout=subprocess.PIPE, env={EVENTS: ""})
    try:
        assert child.stdout is not None
        line = child.stdout.readline().decode()
        assert "/v2/models/empty is ready (null on cpu, threads: 1). Ctrl-C stops it." in line
    finally:
        process.stop(child)
        child.stdout.close()


def test_a_port_in_use_is_one_line(null: Server, empty: Path) -> None:
    port = str(null.address[1])
    done = refused(str(empty), "--runtime", "null", "--port", port)
    assert done.returncode == 2
    expected = (
        f"error: cannot listen on 127.0.0.1 port {port}: Address already in use; choose another with --host or --port"
    )
    assert done.stderr.startswith(expected)
    assert done.stderr.count("\n") == 1


def test_a_refusal_is_an_event_for_programs(empty: Path) -> None:
    words = ["-m", "serve", str(empty), "--runtime", "nul", "--port", "0"]
    done = subprocess.run([sys.executable, *words], capture_output=True, env={**os.environ, EVENTS: "1"}, check=False)
    assert done.returncode == 2
    assert json.loads(done.stdout) == {
        "event": "error",
        "reason": done.stderr.decode().removeprefix("error: ").strip(),
    }
    assert b"unknown runtime 'nul' (did you mean null?); there is: null, onnx_runtime" in done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--batch-sizes", "8,1"], "batch_sizes is [8, 1]; expected one or more positive numbers in ascending order"),
        (["--batch-sizes", "0"], "batch_sizes is [0]; expected"),
        (["--batch-sizes", ""], "batch_sizes is []; expected"),
        (["--batch-sizes", "one"], "--batch-sizes is 'one'; expected numbers with commas, as in 1,32"),
        (["--threads", "0"], "threads is 0"),
        (["--queue", "0"], "queue 0; expected at least 1"),
        (["--cpus", "9999"], "--cpus names [9999]; this process may use"),
        (["--deployment", '{"artifact": "a"}'], "--deployment is not a Deployment in JSON: Object missing required"),
        (["--host", "203.0.113.1"], "cannot listen on 203.0.113.1 port 8000"),
    ],
)
def test_a_bad_option_is_one_line(empty: Path, words: list[str], expected: str) -> None:
    done = refused(str(empty), "--runtime", "null", *words)
    assert done.returncode == 2
    assert expected in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_a_changed_artifact_is_refused(onnx: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(onnx, broken)
    content = bytearray((broken / "1" / "model.onnx").read_bytes())
    content[-1] ^= 1
    (broken / "1" / "model.onnx").write_bytes(content)
    done = refused(str(broken))
    assert done.returncode == 2
    assert "1/model.onnx: its SHA-256 is not the manifest's; make the folder broken again" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_folder_that_is_no_artifact_is_refused(tmp_path: Path) -> None:
    done = refused(str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path}/artifact.json: no such file\n"


# How it ends


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_answers_what_is_under_way(empty: Path, image: NDArray[np.uint8], number: int) -> None:
    headers, body = wire.encode_request(image)
    with serving(empty, "--runtime", "null") as server, server.connected() as idle, server.connected() as busy:
        idle.connect()
        busy.putrequest("POST", server.infer_path)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            busy.putheader(name, value)
        busy.endheaders(body[:100])
        # An answer on another connection shows that the server has seen what was sent before.
        assert server.infer(image).status == 200
        server.child.send_signal(number)
        idle.sock.settimeout(PATIENCE)
        assert idle.sock.recv(1) == b""
        busy.send(body[100:])
        answer = _read(busy.getresponse())
        assert answer.scores == pytest.approx(0.125)
        assert answer.headers["connection"] == "close"
        assert server.child.wait(PATIENCE) == 0


def test_told_to_stop_while_it_loads_it_hears_it_in_the_background_too() -> None:
    """A shell script starts its background processes with SIGINT ignored."""
    code = (
        "import signal, time\nfrom medserve import process\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "process.interruptible()\nprint(flush=True)\ntime.sleep(1000)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    child.stdout.readline()
    child.terminate()
    assert child.wait(PATIENCE) != 0
    child.stdout.close()


def test_a_killed_parent_leaves_no_orphan(empty: Path) -> None:
    words = ["-m", "serve", str(empty), "--runtime", "null", "--port", "0"]
    code = (
        "import subprocess, sys, time\nfrom medserve import process\n"
        f"child = process.start({words!r}, stdout=subprocess.PIPE, env={{'MEDSERVE_EVENTS': '1'}})\n"
        "print(child.stdout.readline().decode(), flush=True)\ntime.sleep(1000)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    server = psutil.Process(json.loads(parent.stdout.readline())["pid"])
    assert server.is_running()
    parent.kill()
    parent.wait(PATIENCE)
    parent.stdout.close()
    assert _ended(server)


def _ended(server: psutil.Process) -> bool:
    """Whether a process ends before patience does; as a zombie it has ended, whoever its new parent is."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if not server.is_running() or server.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False
