"""The benchmark of the load generator: its pure parts, other clients on known answers, and a glance at each part."""

import json
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest
from conftest import Stage

from loadtest.benchmark.__main__ import PARTS
from loadtest.benchmark.bench import Line
from loadtest.benchmark.canned import answer
from loadtest.benchmark.other_clients import wrk
from loadtest.generator import payload
from loadtest.generator.payload import Load
from loadtest.measure.locust_process import free_ports
from loadtest.selftest import reference_client
from medserve import wire
from medserve.errors import CannotRun
from medserve.spec import LoadProfile


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

    def __init__(self, request: bytes, pieces: list[bytes], port: int) -> None:
        super().__init__(daemon=True)
        self._listener = socket.create_server(("127.0.0.1", port), backlog=128)
        self._request, self._pieces = request, pieces
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


@pytest.fixture
def plan(tmp_path: Path) -> Load:
    """40 requests of 307 kB, 2 ms apart."""
    np.save(tmp_path / "images.npy", np.ones((1, 320, 320, 3), np.uint8))
    profile = LoadProfile(name="even", mode="open-loop", rate=500.0, seconds=0.08, warmup_seconds=0.0)
    return Load(url="http://127.0.0.1:1", model="m", profile=profile, images=str(tmp_path / "images.npy"))


@pytest.mark.parametrize("sleeps", [False, True])
@pytest.mark.parametrize("kind", ["whole", "in pieces", "silent"])
def test_the_reference_client_sends_by_schedule_and_knows_where_an_answer_ends(
    plan: Load, kind: str, sleeps: bool
) -> None:
    timing, clock = "queue;dur=0.5, decode;dur=0.25, infer;dur=2.0, encode;dur=0.125", "5 7"
    head = f"HTTP/1.1 503 no\r\ncontent-LENGTH:   5\r\nserver-timing: {timing}\r\nMedserve-CLOCK: {clock}\r\n\r\n"
    whole = head.encode() + b"hello"
    pieces = {"whole": [whole], "in pieces": [whole[:30], whole[30:39], whole[39:-3], whole[-3:]], "silent": []}[kind]
    (port,) = free_ports(1)
    plan = msgspec.structs.replace(
        plan, url=f"http://127.0.0.1:{port}", timeout_seconds=0.3 if kind == "silent" else 20.0
    )
    server = Scripted(payload.requests(plan)[1][0], pieces, port)
    try:
        table = reference_client.open_loop(plan, sleeps)
    finally:
        server.close()
    intended, sent, done = (table[f"{name}_ns"].to_numpy() for name in ("intended", "sent", "done"))
    assert np.array_equal(np.diff(intended), np.full(39, 2_000_000))
    assert (intended <= sent).all()
    assert (sent < done).all()
    assert set(table["status"].to_pylist()) == ({0} if kind == "silent" else {503})
    assert set(table["infer_ns"].to_pylist()) == ({None} if kind == "silent" else {2_000_000})


def test_a_reference_client_without_a_server_says_so(plan: Load) -> None:
    with pytest.raises(OSError, match="refused"):
        reference_client.open_loop(plan)


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
    # A search takes minutes at any scale; `test_slo_search` and `test_load_command` try it.
    names = [name for name in PARTS if name != "objective"]
    done = stage("loadtest.benchmark", "load", "--scale", "0.02", "--only", ",".join(names), "--json")
    assert done.returncode == 0, done.stderr
    lines = json.loads(done.stdout)
    assert list(dict.fromkeys(line["part"] for line in lines)) == names
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
