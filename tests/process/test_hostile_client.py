"""One client that sends what it wants, up to 64 MB: the server's memory, its event loop, its health page, its end."""

import gzip
import http.client
import json
import re
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import Stage
from http_contents import encoded
from http_conversations import Conversation, Reader
from numpy.typing import NDArray
from server_process import PATIENCE, Server, serving

from loadtest.benchmark.hostile import ATTACKS, LARGE_ANSWER, REQUEST, UPGRADE, flat_png, progressive_jpeg
from loadtest.benchmark.resilience import attack
from medserve import wire
from medserve.empty import empty_artifact

CONNECTIONS = 900
LOOP_SECONDS = 5.0
"""CPU time that the event loop may use while a question for health waits.

A question waits for what all connections have sent before it: with 900 of them, 16 requests each, a second on a slow
machine.
"""
ATTACK_SECONDS = 10.0
"""CPU time that 64 MB may cost."""
DRAIN_SECONDS = 5.0
LOG_BYTES = 1 << 20

BY_DEFAULT = ("trailers", "pipelined", "chunks", "headers", "idle", "scans", "pixels", "texts", "metadata", "bombs")
"""What has brought down a server of this project once; the others are tried by `make test-full`."""


@pytest.fixture(scope="module")
def null(empty: Path) -> Iterator[Server]:
    with serving(empty, "--runtime", "null") as server:
        yield server


def framed(server: Server, route: str, body: bytes, *lines: str) -> bytes:
    start = [f"POST /v2/models/{server.model}/{route} HTTP/1.1", "Host: a", f"Content-Length: {len(body)}", *lines]
    return "\r\n".join([*start, "", ""]).encode() + body


def infer(server: Server, image: NDArray[np.uint8], *lines: str) -> bytes:
    headers, body = wire.encode_request(image)
    return framed(server, "infer", body, *lines, *(f"{name}: {value}" for name, value in headers.items()))


def statuses(connection: socket.socket, count: int) -> list[int]:
    """Of the answers that come, until there are `count` or the server closes."""
    reader = Reader(Conversation(0, (), True, "whole", None, "wait", "all"))
    while len(reader.received.answers) < count and not reader.received.closed:
        try:
            reader.feed(connection.recv(1 << 16))
        except ConnectionResetError:
            reader.feed(b"")
    assert not reader.received.error
    return [answer.status for answer in reader.received.answers]


def is_closed(connection: socket.socket, seconds: float = PATIENCE) -> bool:
    """Whether the server closes a connection that is not read."""
    poll = select.poll()
    # Bytes that arrive are no event here: only the end is, of one direction or of both.
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(seconds * 1000))


# Memory, event loop, health and end under attack


@pytest.mark.parametrize(
    "name", [name if name in BY_DEFAULT else pytest.param(name, marks=pytest.mark.full) for name in ATTACKS]
)
def test_the_server_survives_an_attack(name: str, tmp_path: Path) -> None:
    """The attack to its end, a good request, and the attack again with SIGTERM in its middle."""
    kind = ATTACKS[name]
    folder, log = empty_artifact(tmp_path, kind.size), tmp_path / "log"
    with log.open("wb") as file, serving(folder, *kind.options, stderr=file) as server:
        found = attack(name, server.child.pid, server.url, server.model)
        code = server.child.wait(PATIENCE)
    print(found)
    assert found.growth_bytes < server.growth_bytes
    assert found.live_failures == ()
    assert found.live_answers > 0
    assert found.loop_seconds < LOOP_SECONDS
    assert found.cpu_seconds < ATTACK_SECONDS
    assert code == 0
    # The limit on draining, plus whatever a busy machine takes; the CPU time is the server's own.
    assert found.exit_seconds is not None
    assert found.exit_seconds < DRAIN_SECONDS + PATIENCE / 2
    assert found.exit_cpu_seconds < DRAIN_SECONDS
    assert log.stat().st_size < LOG_BYTES
    assert b"traceback" not in log.read_bytes()


def test_the_largest_request_is_computed_at_the_start(tmp_path: Path) -> None:
    """So that the bound on memory can be known before a client comes; an image file is bounded by its pixels."""
    found = []
    for size in (28, 224):
        folder = tmp_path / str(size)
        folder.mkdir()
        with serving(empty_artifact(folder, size), "--runtime", "null", "--batch-sizes", "64") as server:
            found.append(server.facts["largest_request_bytes"])
    small, large = found
    assert 16 << 20 <= small <= 128 << 20
    assert large >= 8 * 64 * 224 * 224 * 3


# What is not obeyed, not dropped, not believed


@pytest.mark.parametrize(
    "trailer",
    ["Content-Encoding: gzip", "Content-Encoding: br", f"{wire.HEAD_LENGTH}: 3", "Connection: Upgrade", "Origin: a"],
)
def test_a_trailer_is_not_obeyed(null: Server, image: NDArray[np.uint8], trailer: str) -> None:
    headers, body = wire.encode_request(image)
    lines = [f"{name}: {value}" for name, value in headers.items()]
    start = [f"POST {null.infer_path} HTTP/1.1", "Host: a", "Transfer-Encoding: chunked", *lines, "", ""]
    content = "\r\n".join(start).encode() + b"%x\r\n%s\r\n0\r\n%s\r\n\r\n" % (len(body), body, trailer.encode())
    with socket.create_connection(null.address, PATIENCE) as connection:
        connection.sendall(content * 2)
        assert statuses(connection, 2) == [200, 200]


@pytest.mark.parametrize(
    "upgrade", [UPGRADE, b"Connection: upgrade\r\nUpgrade: websocket\r\n"], ids=["h2c", "websocket"]
)
@pytest.mark.parametrize("ahead", [True, False], ids=["ahead", "in turn"])
def test_an_offer_of_another_protocol_is_ignored(
    null: Server, image: NDArray[np.uint8], upgrade: bytes, ahead: bool
) -> None:
    contents = [
        REQUEST[:-2] + upgrade + b"\r\n",
        infer(null, image, *upgrade.decode().split("\r\n")[:-1]),
        infer(null, image),
    ]
    with socket.create_connection(null.address, PATIENCE) as connection:
        for part in [b"".join(contents)] if ahead else contents:
            connection.sendall(part)
            expected = len(contents) if ahead else 1
            assert statuses(connection, expected) == [200] * expected


def test_a_head_that_comes_with_the_body_before_it_is_not_too_large(null: Server) -> None:
    first = infer(null, np.zeros((32, 28, 28, 3), np.uint8))
    assert len(first) > 1 << 16
    for at in (1, 20, len(REQUEST) - 1):
        with socket.create_connection(null.address, PATIENCE) as connection:
            connection.sendall(first + REQUEST[:at])
            assert statuses(connection, 1) == [200]
            connection.sendall(REQUEST[at:] + first)
            assert statuses(connection, 2) == [200, 200]


def test_a_large_head_is_refused_however_it_comes(null: Server) -> None:
    large = REQUEST[:-2] + b"Large: " + b"a" * 100_000 + b"\r\n\r\n"
    for parts in ([large], [large[:60_000], large[60_000:]], [REQUEST + large]):
        with socket.create_connection(null.address, PATIENCE) as connection:
            for part in parts:
                connection.sendall(part)
            expected = [200, 431] if parts[0].startswith(REQUEST) else [431]
            assert statuses(connection, 3) == expected


@pytest.mark.parametrize(
    "rubbish",
    [b"\0\1\2\3\r\n\r\n", b"BREW / HTTP/9.9\r\n\r\n", b"GET /v2 HTTP/1.1\r\nbad\r\n\r\n"],
    ids=["bytes", "method", "header"],
)
def test_what_comes_before_rubbish_is_answered_first(null: Server, image: NDArray[np.uint8], rubbish: bytes) -> None:
    for good in (REQUEST, infer(null, image), REQUEST + infer(null, image)):
        count = good.count(b"HTTP/1.1\r\n")
        with socket.create_connection(null.address, PATIENCE) as connection:
            connection.sendall(good + rubbish)
            assert statuses(connection, count + 2) == [200] * count + [400]


# Connections


@pytest.mark.full
def test_a_client_that_never_reads_is_closed(empty: Path, image: NDArray[np.uint8]) -> None:
    with serving(empty, "--runtime", "null") as server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(server.address)
        connection.setblocking(False)
        # A few at a time, until the kernel takes no more answers and the server holds them.
        with suppress(OSError):
            while not is_closed(connection, 0.02):
                connection.sendall(LARGE_ANSWER * 4)
        assert is_closed(connection)
        assert server.infer(image).status == 200


def test_idle_connections_lock_nobody_out(empty: Path, image: NDArray[np.uint8]) -> None:
    """The connection that is idle for the longest time is closed: not the first one, which was used since."""
    with serving(empty, "--runtime", "null") as server, ExitStack() as stack:
        connections = [
            stack.enter_context(socket.create_connection(server.address, PATIENCE)) for _ in range(CONNECTIONS)
        ]
        used, idle = connections[:2]
        used.sendall(REQUEST)
        assert statuses(used, 1) == [200]
        for _ in range(5):
            assert server.infer(image).status == 200
        assert is_closed(idle)
        used.sendall(REQUEST)
        assert statuses(used, 1) == [200]


# Files and encodings


def test_a_scan_costs_the_decoder_a_pass_so_few_are_allowed(null: Server) -> None:
    path = f"/v2/models/{null.model}/classify"
    process = psutil.Process(null.child.pid)
    hidden = progressive_jpeg(2048, 1000).replace(b"\xff\xda", b"\xff\xff\xff\xda")
    for file in (progressive_jpeg(4096, 8000), progressive_jpeg(2048, 1000), hidden):
        before = process.cpu_times().user
        refused = null.ask("POST", path, file)
        assert (refused.status, set(refused.json)) == (400, {"error"})
        assert process.cpu_times().user - before < LOOP_SECONDS
    for good in (encoded("JPEG", progressive=True), encoded("JPEG"), encoded("JPEG", 1024, progressive=True)):
        assert null.ask("POST", path, good).status == 200


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_an_image_of_more_than_four_megapixels_is_refused(null: Server, form: str) -> None:
    path = f"/v2/models/{null.model}/classify"
    refused = null.ask("POST", path, encoded(form, 4096))
    assert refused.status == 400
    assert re.search(r"4096 x 4096 px.*expected", refused.error)
    assert null.ask("POST", path, encoded(form, 2000)).status == 200


@pytest.mark.parametrize("coding", ["gzip", "deflate", "GZIP", "br"])
def test_an_image_file_is_not_compressed_again(null: Server, coding: str) -> None:
    path = f"/v2/models/{null.model}/classify"
    for file in (flat_png(28), progressive_jpeg(4096, 8000)):
        refused = null.ask("POST", path, gzip.compress(file), {"Content-Encoding": coding})
        assert refused.status == 415
        assert "Content-Encoding" in refused.error
    assert null.ask("POST", path, flat_png(28), {"Content-Encoding": "identity"}).status == 200


@pytest.mark.parametrize("coding", ["GZIP", "Gzip", " gzip ", "IDENTITY"])
def test_the_name_of_a_coding_has_no_case(null: Server, image: NDArray[np.uint8], coding: str) -> None:
    headers, body = wire.encode_request(image)
    packed = body if "IDENTITY" in coding else gzip.compress(body)
    answer = null.ask("POST", null.infer_path, packed, {**headers, "Content-Encoding": coding})
    assert answer.scores == pytest.approx(0.125)


@pytest.mark.parametrize("lines", [["gzip, gzip"], ["gzip", "gzip"], ["identity", "br"]])
def test_two_codings_are_refused(null: Server, image: NDArray[np.uint8], lines: list[str]) -> None:
    headers, body = wire.encode_request(image)
    codings = [f"Content-Encoding: {line}" for line in lines]
    content = framed(null, "infer", gzip.compress(body), *codings, *(f"{a}: {b}" for a, b in headers.items()))
    with socket.create_connection(null.address, PATIENCE) as connection:
        connection.sendall(content)
        assert statuses(connection, 1) == [415]


def test_head_answers_like_get_without_a_body(null: Server) -> None:
    paths = list(json.loads(null.ask("GET", "/openapi.json").body)["paths"])
    with null.connected() as connection:
        for path in [path for path in paths if not path.endswith(("/infer", "/classify"))] + ["/nowhere"]:
            answers = []
            for method in ("GET", "HEAD"):
                connection.request(method, path)
                answer = connection.getresponse()
                answers.append((answer, answer.read()))
            (got, content), (head, nothing) = answers
            assert head.status == got.status, path
            assert nothing == b""
            assert head.headers["content-type"] == got.headers["content-type"]
            # The page of metrics changes from one request to the next.
            if path != "/metrics":
                assert int(head.headers["content-length"]) == len(content)


def test_a_request_of_many_headers_is_refused(null: Server) -> None:
    """4 bytes each, which a server keeps in a hundred: half heads on many connections would fill its memory."""
    with null.connected() as connection:
        connection.putrequest("GET", "/v2")
        for _ in range(10_000):
            connection.putheader("a", "")
        connection.endheaders()
        assert connection.getresponse().status in (400, 431)


def test_the_benchmark_of_attacks_compares_source_trees(stage: Stage) -> None:
    tree = str(Path(__file__).parents[2])
    done = stage("loadtest.benchmark", "hostile", "--only", "scans,heads", "--source", tree, "--source", tree, "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [row["attack"] for row in rows] == ["scans", "scans", "heads", "heads"]
    for row in rows:
        assert row["sent_bytes"] > 0
        assert row["live_answers"] > 0
        assert row["exit_seconds"] is not None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--only", "nope"], "unknown attack 'nope'; there is: "),
        (["--only", "scans", "--source", "/nowhere"], "/nowhere: no serve/__main__.py; expected a source tree"),
    ],
)
def test_the_benchmark_of_attacks_refuses_in_one_line(stage: Stage, words: list[str], expected: str) -> None:
    done = stage("loadtest.benchmark", "hostile", *words)
    assert done.returncode == 2
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_server_that_was_attacked_serves_standard_clients(null: Server, image: NDArray[np.uint8]) -> None:
    """All tests above used one server."""
    end = time.monotonic() + PATIENCE
    while len(psutil.Process(null.child.pid).net_connections()) > 10:
        assert time.monotonic() < end, "connections stay open"
    connection = http.client.HTTPConnection(*null.address, timeout=PATIENCE)
    for _ in range(3):
        connection.request("POST", null.infer_path, *reversed(wire.encode_request(image)))
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
    connection.close()
