"""A server as a process of its own, and a client that sees every byte of what it answers."""

import http.client
import json
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from medserve import process, wire
from medserve.errors import EVENTS

PATIENCE = 60
GROWTH_BYTES = 64 << 20
"""By which one client makes a server process grow at most, above what the largest legal request takes."""


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
    def growth_bytes(self) -> int:
        """By which one client may make the process grow: its own promise at the start."""
        largest: int = self.facts["largest_request_bytes"]
        return GROWTH_BYTES + largest

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
            return read(answer)


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
    connection.request(method, path, body, headers)
    return read(connection.getresponse())


def read(answer: http.client.HTTPResponse) -> Answer:
    return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())


@contextmanager
def serving(
    folder: Path, *words: str, program: Sequence[str] = ("-m", "serve"), stderr: IO[bytes] | None = None
) -> Iterator[Server]:
    """A server process that is ready, on a free port."""
    child = process.start(
        [*program, str(folder), "--port", "0", *words], stdout=subprocess.PIPE, stderr=stderr, env={EVENTS: "1"}
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
