"""The benchmark of the load generator: its pure parts, other clients on known answers, and a glance at each part."""

import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import Stage

from loadtest.benchmark import poller
from loadtest.benchmark.__main__ import PARTS
from loadtest.benchmark.bench import Line
from loadtest.benchmark.canned import answer
from loadtest.benchmark.other_clients import wrk
from medserve import wire
from medserve.errors import CannotRun


@pytest.mark.parametrize(
    ("value", "low", "high", "ok"),
    [
        (5.0, None, None, None),
        (None, 1.0, None, None),
        (5.0, 5.0, None, True),
        (4.9, 5.0, None, False),
        (0.0, None, 0.0, True),
        (-11.0, -10.0, 10.0, False),
        (float("nan"), -10.0, 10.0, False),
    ],
)
def test_a_line_says_whether_its_target_is_reached(
    value: float | None, low: float | None, high: float | None, ok: bool | None
) -> None:
    line = Line(part="p", name="n", value=value, low=low, high=high, note="because")
    assert line.ok is ok
    assert {True: "yes", False: "NO", None: "because"}[ok] in line.cells()


class Scripted(threading.Thread):
    """A server that sends each answer in pieces, and closes when a request is not the expected one."""

    def __init__(self, request: bytes, pieces: list[bytes]) -> None:
        super().__init__(daemon=True)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._request, self._pieces = request, pieces
        self.address: tuple[str, int] = self._listener.getsockname()
        self.start()

    def run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            held = b""
            while part := connection.recv(1 << 20):
                held += part
                while held.startswith(self._request):
                    held = held[len(self._request) :]
                    for piece in self._pieces:
                        connection.sendall(piece)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


REQUEST = b"POST / HTTP/1.1\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000


@pytest.fixture(params=["whole", "in pieces", "silent"])
def scripted(request: pytest.FixtureRequest) -> Iterator[tuple[str, Scripted]]:
    whole = b"HTTP/1.1 503 no\r\ncontent-LENGTH:   5\r\n\r\nhello"
    pieces = {"whole": [whole], "in pieces": [whole[:30], whole[30:39], whole[39:43], whole[43:]], "silent": []}
    server = Scripted(REQUEST, pieces[request.param])
    yield request.param, server
    server.close()


def test_the_poller_sends_by_schedule_and_knows_where_an_answer_ends(scripted: tuple[str, Scripted]) -> None:
    kind, server = scripted
    offsets = np.arange(40) * 2_000_000
    rows = poller.open_loop(server.address, [REQUEST], offsets, timeout_seconds=0.3 if kind == "silent" else 20.0)
    intended, sent, done, status = rows.T
    assert np.array_equal(np.diff(intended), np.diff(offsets))
    assert (intended <= sent).all()
    assert (sent < done).all()
    assert set(status) == ({0} if kind == "silent" else {503})


def test_a_poller_without_a_server_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    with pytest.raises(OSError, match="refused"):
        poller.open_loop(address, [REQUEST], np.zeros(1, np.int64), 1.0)


def test_the_canned_answer_is_one_of_the_protocol() -> None:
    head, _, body = answer().partition(b"\r\n\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:])
    assert wire.decode_response(body, headers[wire.HEAD_LENGTH.lower()]).sum() == pytest.approx(1.0)
    assert int(headers["content-length"]) == len(body)


def test_the_canned_server_answers_and_counts() -> None:
    child = subprocess.Popen([sys.executable, "-m", "loadtest.benchmark.canned"], stdout=subprocess.PIPE)
    assert child.stdout is not None
    try:
        host, port = json.loads(child.stdout.readline())["url"].removeprefix("http://").split(":")
        request = b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"
        with socket.create_connection((host, int(port))) as connection:
            for part in (request, request[:10], request[10:] + request):
                connection.sendall(part)
            held = b""
            while len(held) < 3 * len(answer()):
                held += connection.recv(65536)
        assert held == answer() * 3
    finally:
        child.terminate()
        said = json.loads(child.communicate(timeout=20)[0])
    assert said["count"] == 3
    assert said["seconds"] > 0


def test_without_wrk_there_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(CannotRun, match="wrk is not installed"):
        wrk("http://127.0.0.1:1", b"", 1.0, (), tmp_path)


@pytest.mark.full
def test_a_glance_at_every_part(stage: Stage) -> None:
    done = stage("loadtest.benchmark", "load", "--scale", "0.02", "--json")
    assert done.returncode == 0, done.stderr
    lines = json.loads(done.stdout)
    assert list(dict.fromkeys(line["part"] for line in lines)) == list(PARTS)
    for line in lines:
        assert (line["value"] is not None) or line["note"], line
    values = {(line["part"], line["name"]): line["value"] for line in lines}
    assert 0 < values["schedule", "lag p50 at 500/s"] < 1e6
    assert values["generator", "recorded requests"] > 100
    assert values["analysis", "peak memory"] > 0.01
    if shutil.which("wrk"):
        assert 900 < values["wrk", "p50 of model, wrk"] < 1e5


def test_an_unknown_part_is_refused(stage: Stage) -> None:
    done = stage("loadtest.benchmark", "load", "--only", "schedule,nonesuch")
    assert (done.returncode, done.stdout) == (2, "")
    assert "unknown part 'nonesuch'" in done.stderr
