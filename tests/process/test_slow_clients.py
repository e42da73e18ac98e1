"""Clients that send half a request, an endless one, or a byte now and then: answered where they can be, and closed."""

import selectors
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from server_process import PATIENCE, Server, serving

from medserve import wire
from medserve.empty import empty_artifact
from serve import http_server

CLOSED_WITHIN = 10


@pytest.fixture(scope="module")
def null(empty: Path) -> Iterator[Server]:
    with serving(empty, "--runtime", "null") as server:
        yield server


def head(server: Server, *lines: str) -> bytes:
    return "\r\n".join([f"POST {server.infer_path} HTTP/1.1", "Host: x", *lines, "", ""]).encode()


@contextmanager
def dripping(connection: socket.socket, content: bytes) -> Iterator[None]:
    """A byte of `content` again and again, as long as the server takes it."""
    ended = threading.Event()

    def drip() -> None:
        with suppress(OSError):
            while not ended.wait(0.2):
                connection.sendall(content)

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_whoever_does_not_finish_is_answered_and_closed(null: Server, image: NDArray[np.uint8]) -> None:
    """All of them wait at once, for the longest is nearly ten seconds."""
    begun = {
        "nothing": b"",
        "half a line": b"POST /v2",
        "half a head": b"POST /v2 HTTP/1.1\r\nHost: x\r\n",
        "no body": head(null, "Content-Length: 500"),
        "half a body": head(null, "Content-Length: 500") + b"half",
        "half a chunk": head(null, "Transfer-Encoding: chunked") + b"10\r\nhalf",
        "no last chunk": head(null, "Transfer-Encoding: chunked") + b"4\r\nhalf\r\n",
        "a second request": b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\nGET /v2",
        "a slow head": b"POST /v2 HTTP/1.1\r\nSlow: ",
        "a slow body": head(null, "Content-Length: 500000"),
        "a rest of what was refused": head(null, "Content-Length: 99999999") + b"x",
    }
    connections = {name: socket.create_connection(null.address, PATIENCE) for name in begun}
    started = time.monotonic()
    for name, connection in connections.items():
        connection.sendall(begun[name])
    with dripping(connections["a slow head"], b"s"), dripping(connections["a slow body"], b"s"):
        answers, ends = read_all(connections)
        assert null.infer(image).status == 200
    for connection in connections.values():
        connection.close()
    refused, second, too_large = answers, answers.pop("a second request"), answers.pop("a rest of what was refused")
    for name, answer in refused.items():
        assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n"), name
        assert b'{"error":"No whole request within 8 s.' in answer, name
    assert second.startswith(b"HTTP/1.1 200 OK")
    assert b"408 Request Timeout" in second
    assert too_large.startswith(b"HTTP/1.1 413")
    assert b"408" not in too_large
    assert min(ends.values()) - started >= http_server.RECEIVE_SECONDS
    # No time decides: the machine may be busy, but the server looks every second.
    assert max(ends.values()) - started < 3 * CLOSED_WITHIN


def read_all(connections: dict[str, socket.socket]) -> tuple[dict[str, bytes], dict[str, float]]:
    """What each connection received until its end, and when that was."""
    found, ends = dict.fromkeys(connections, b""), {}
    with selectors.DefaultSelector() as selector:
        for name, connection in connections.items():
            selector.register(connection, selectors.EVENT_READ, name)
        while len(ends) < len(connections):
            ready = selector.select(PATIENCE)
            assert ready, f"never closed: {set(connections) - set(ends)}"
            for key, _ in ready:
                try:
                    piece = connections[key.data].recv(4096)
                except ConnectionResetError:
                    piece = b""
                found[key.data] += piece
                if not piece:
                    selector.unregister(key.fileobj)
                    ends[key.data] = time.monotonic()
    return found, ends


@pytest.mark.full
def test_a_client_that_rests_between_requests_is_not_closed(null: Server, image: NDArray[np.uint8]) -> None:
    headers, body = wire.encode_request(image)
    with null.connected() as connection:
        for pause in (http_server.RECEIVE_SECONDS + 2.5, 0):
            connection.request("POST", null.infer_path, body, headers)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200
            assert answer.headers["connection"] != "close"
            time.sleep(pause)


@pytest.mark.parametrize("start", [b"GET /v2 HTTP/1.1\r\n", b"GET /", b"GET /v2 HTTP/1.1\r\nLong: "])
def test_an_endless_head_is_refused(null: Server, image: NDArray[np.uint8], start: bytes) -> None:
    more = b"Name: value\r\n" * 1000 if start.endswith(b"\n") else b"x" * 10_000
    with socket.create_connection(null.address, PATIENCE) as connection, suppress(ConnectionError):
        connection.sendall(start)
        for _ in range(10_000):
            connection.sendall(more)
        pytest.fail("the server took 100 MB of head")
    assert psutil.Process(null.child.pid).memory_info().rss < 400 << 20
    assert null.infer(image).status == 200


@pytest.mark.full
def test_all_bodies_together_are_bounded(tmp_path: Path) -> None:
    """Images of 224 px in batches of 64: one request may be large, all of them may not."""
    folder = empty_artifact(tmp_path, 224)
    images = np.zeros((64, 224, 224, 3), np.uint8)
    headers, body = wire.encode_request(images)
    lines = [f"{name}: {value}" for name, value in {**headers, "Content-Length": str(len(body))}.items()]
    with serving(folder, "--runtime", "null", "--batch-sizes", "64") as server, selectors.DefaultSelector() as selector:
        almost = (head(server, *lines) + body)[:-1]
        connections = [socket.create_connection(server.address, PATIENCE) for _ in range(70)]
        process, bound = psutil.Process(server.child.pid), server.facts["held_bytes"]
        assert len(connections) * len(almost) > 4 * bound
        before = process.memory_info().rss
        for connection in connections:
            selector.register(connection, selectors.EVENT_READ)
            with suppress(ConnectionError):
                connection.sendall(almost)
        assert selector.select(PATIENCE), "nobody was refused"
        assert process.memory_info().rss < before + 2 * bound
        for connection in connections:
            connection.close()
        assert server.infer(images[:1]).status == 200


def test_an_idle_connection_is_closed(empty: Path) -> None:
    words = ["--runtime", "null", "--keep-alive", "1"]
    with serving(empty, *words) as server, socket.create_connection(server.address, PATIENCE) as connection:
        connection.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        assert connection.recv(1) == b""
