"""How an answer leaves the server: whole, in one piece, and also where no body follows its head."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from numpy.typing import NDArray
from server_process import PATIENCE, Server, serving
from uvicorn.server import ServerState

from medserve import wire
from serve.protocol import PIECES, PIPELINE, Limits, Protocol


@pytest.fixture(scope="module")
def null(empty: Path) -> Iterator[Server]:
    with serving(empty, "--runtime", "null") as server:
        yield server


class Pieces(asyncio.Transport):
    """A transport that keeps what is written to it, piece by piece."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


async def _application(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    if scope["path"] == "/mistake":
        raise ValueError("a mistake")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
    await send({"type": "http.response.body", "body": b"\r\n\r\n"})


def _written(request: bytes) -> Pieces:
    """What the protocol writes for a request."""

    async def answer() -> Pieces:
        pieces = Pieces()
        config = uvicorn.Config(_application, interface="asgi3", ws="none", lifespan="off", log_config=None)
        config.load()
        protocol = Protocol(config, ServerState(), {}, limits=Limits(1 << 20))
        protocol.connection_made(pieces)
        protocol.data_received(request)
        await asyncio.gather(*protocol.tasks)
        return pieces

    return asyncio.run(answer())


HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n"


@pytest.mark.parametrize(
    ("request_line", "connection", "expected", "is_closed"),
    [
        (b"GET / HTTP/1.1", b"", HEAD + b"\r\n" + b"\r\n\r\n", False),
        (b"HEAD / HTTP/1.1", b"", HEAD + b"\r\n", False),
        (b"GET / HTTP/1.1", b"Connection: close\r\n", HEAD + b"connection: close\r\n\r\n" + b"\r\n\r\n", True),
        (b"GET / HTTP/1.0", b"", HEAD + b"connection: close\r\n\r\n" + b"\r\n\r\n", True),
    ],
)
def test_an_answer_leaves_in_one_write(
    request_line: bytes, connection: bytes, expected: bytes, is_closed: bool
) -> None:
    pieces = _written(request_line + b"\r\nHost: x\r\n" + connection + b"\r\n")
    assert pieces.written == [expected]
    assert pieces.closed is is_closed


def test_an_application_that_fails_closes_its_connection(caplog: pytest.LogCaptureFixture) -> None:
    pieces = _written(b"GET /mistake HTTP/1.1\r\nHost: x\r\n\r\n")
    assert len(pieces.written) == 1
    assert pieces.written[0].startswith(b"HTTP/1.1 500 ")
    assert b"connection: close" in pieces.written[0]
    assert pieces.closed
    assert "a mistake" in caplog.text


def test_a_client_that_asks_for_the_head_alone_gets_it_and_goes_on(null: Server) -> None:
    for connection in ("keep-alive", "close"):
        with socket.create_connection(null.address, PATIENCE) as client:
            client.sendall(f"HEAD /v2 HTTP/1.1\r\nHost: x\r\nConnection: {connection}\r\n\r\n".encode())
            answer = client.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert answer.endswith(b"\r\n\r\n")
            if connection == "close":
                assert client.recv(65536) == b""
            else:
                client.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
                assert client.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_client_that_waits_for_a_go_ahead_gets_it(null: Server, image: NDArray[np.uint8]) -> None:
    headers, body = wire.encode_request(image)
    lines = [f"{name}: {value}" for name, value in headers.items()]
    head = [f"POST {null.infer_path} HTTP/1.1", "Host: x", "Expect: 100-continue", f"Content-Length: {len(body)}"]
    with socket.create_connection(null.address, PATIENCE) as client:
        client.sendall("\r\n".join([*head, *lines, "", ""]).encode())
        assert client.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(body)
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_requests_of_web_pages_are_refused(null: Server, image: NDArray[np.uint8]) -> None:
    headers, body = wire.encode_request(image)
    refused = null.ask("POST", null.infer_path, body, {**headers, "Origin": "http://evil.example"})
    assert refused.status == 403
    assert "Origin" in refused.error


def test_a_body_of_very_many_small_chunks_is_refused(null: Server) -> None:
    head = f"POST {null.infer_path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    with socket.create_connection(null.address, PATIENCE) as client:
        with suppress(ConnectionError):
            client.sendall(head + b"1\r\n \r\n" * (PIECES + 1))
        assert client.recv(65536).startswith(b"HTTP/1.1 400 ")


def test_requests_that_wait_on_a_connection_are_bounded(null: Server) -> None:
    with socket.create_connection(null.address, PATIENCE) as client:
        client.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
        answer = b""
        with suppress(ConnectionResetError):
            while part := client.recv(65536):
                answer += part
    statuses = [piece[:3] for piece in answer.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200"] * (PIPELINE + 1) + [b"503"]


def test_requests_that_come_at_once_are_answered_in_turn(null: Server) -> None:
    paths = ["/v2", "/v2/health/live", "/nowhere", "/v2/health/ready"]
    asked = "".join(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n" for path in paths[:-1])
    asked += f"GET {paths[-1]} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with socket.create_connection(null.address, PATIENCE) as client:
        client.sendall(asked.encode())
        answer = b""
        while part := client.recv(65536):
            answer += part
    statuses = [piece[:3] for piece in answer.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200", b"200", b"404", b"200"]
