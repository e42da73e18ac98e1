"""How an answer leaves the server: whole, in one piece, and also where no body follows its head."""

import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from server_process import PATIENCE, Server, serving

from medserve import wire
from serve.protocol import PIECES, PIPELINE, CoalescingTransport


@pytest.fixture(scope="module")
def null(empty: Path) -> Iterator[Server]:
    with serving(empty, "--runtime", "null") as server:
        yield server


class Pieces:
    """A transport that keeps what is written to it, piece by piece."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, _name: str) -> None:
        return None

    def abort(self) -> None:
        self.closed = True

    def get_write_buffer_size(self) -> int:
        return 0


HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"


def test_a_head_waits_for_its_body() -> None:
    pieces = Pieces()
    joined = CoalescingTransport(pieces)  # type: ignore[arg-type]
    joined.write(HEAD)
    assert pieces.written == []
    # Not even a body that ends as a head does is held.
    joined.write(b"\r\n\r\n")
    joined.write(HEAD)
    joined.write(b"")
    assert pieces.written == [HEAD + b"\r\n\r\n", HEAD]


def test_what_is_held_is_written_before_the_end() -> None:
    for end in (CoalescingTransport.flush, CoalescingTransport.close):
        pieces = Pieces()
        joined = CoalescingTransport(pieces)  # type: ignore[arg-type]
        end(joined)
        joined.write(HEAD)
        end(joined)
        assert pieces.written == [HEAD]
        assert joined.is_closing() is (end is CoalescingTransport.close)


def test_a_provisional_answer_and_what_is_no_head_do_not_wait() -> None:
    pieces = Pieces()
    joined = CoalescingTransport(pieces)  # type: ignore[arg-type]
    joined.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    joined.write(b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n\r\n{}")
    assert len(pieces.written) == 2


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
