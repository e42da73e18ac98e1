"""Whole connections by a grammar of HTTP/1.1: each is answered as it must be, or closed; the server stays as it was."""

import asyncio
import json
import time
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from http_contents import PAGES
from http_conversations import Answer, Connection, Conversation, Reader, Received, conversation, problems
from http_grammar import Request
from numpy.typing import NDArray
from server_process import PATIENCE, Server, serving

from loadtest.benchmark.resilience import ServerMonitor

SEED = 1
AT_ONCE = 60
WAITING_AT_ONCE = 300
"""Connections that wait for the server's limit on the time of a request, beside the others."""


async def converse(server: Server, count: int) -> tuple[Counter[int], dict[str, list[str]]]:
    """Answers by status, and conversations by what is wrong with their answers."""
    statuses: Counter[int] = Counter()
    found: defaultdict[str, list[str]] = defaultdict(list)
    numbers = iter(range(count))
    waiting, permits = [], asyncio.Semaphore(WAITING_AT_ONCE)

    async def check(asked: Conversation) -> None:
        try:
            received = await Connection(asked).converse(server.address)
        except TimeoutError:
            found["neither answered nor closed"].append(asked.describe())
            return
        statuses.update(answer.status for answer in received.answers)
        for problem in problems(asked, received):
            found[problem].append(asked.describe())

    async def wait(asked: Conversation) -> None:
        async with permits:
            await check(asked)

    async def work() -> None:
        for number in numbers:
            asked = conversation(SEED, number)
            if asked.waits_for_limit:
                waiting.append(asyncio.create_task(wait(asked)))
            else:
                await check(asked)

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    await asyncio.gather(*waiting)
    return statuses, found


@pytest.mark.parametrize("count", [150, pytest.param(10_000, marks=pytest.mark.full)])
def test_every_conversation_is_answered_or_closed(
    empty: Path, image: NDArray[np.uint8], count: int, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file, serving(empty, "--runtime", "null", stderr=file) as server:
        process = psutil.Process(server.child.pid)
        assert server.infer(image).status == 200
        with ServerMonitor(server.child.pid, server.url) as monitor:
            statuses, found = asyncio.run(converse(server, count))
        print(dict(statuses), f"memory grew by {monitor.growth >> 20} MB, {monitor.answers} health answers")
        assert not found, "\n".join(f"{len(found[kind])} x {kind}, as in {found[kind][0]}" for kind in sorted(found))
        assert {200, 400, 404, 405, 408, 413, 415} <= set(statuses)
        assert not monitor.failures
        assert monitor.answers
        assert monitor.growth < server.growth_bytes
        end = time.monotonic() + PATIENCE
        while any(connection.status == psutil.CONN_ESTABLISHED for connection in process.net_connections()):
            assert time.monotonic() < end, "connections stay open"
        assert server.infer(image).scores == pytest.approx(0.125)
        server.child.terminate()
        assert server.child.wait(PATIENCE) == 0
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [event["event"] for event in events] == ["serving", "draining", "ended"]


# The generator and the checks themselves


def test_the_same_seed_gives_the_same_conversations() -> None:
    assert [conversation(3, number) for number in range(50)] == [conversation(3, number) for number in range(50)]
    assert conversation(3, 1) != conversation(4, 1)


def test_the_grammar_reaches_everything_that_it_names() -> None:
    asked = [conversation(SEED, number) for number in range(3000)]
    requests = [request for one in asked for request in one.requests]
    assert {one.end for one in asked} == {"wait", "half-close", "close", "reset"}
    assert {one.sending for one in asked} == {"whole", "split", "drip"}
    assert {one.reading for one in asked} == {"all", "slow", "none"}
    assert 0.04 < np.mean([one.waits_for_limit for one in asked]) < 0.15
    assert {len(one.requests) for one in asked} == {1, 2, 3, 4, 6}
    for part in (b"HTTP/1.0", b"gzip, gzip", b"Upgrade: websocket", b"HTTP2-Settings", b"Expect: 100-", b"\r\n b\r\n"):
        assert any(part in request.content for request in requests), part
    for target in PAGES:
        assert any(b" %s " % target in request.content for request in requests), target
    for statuses in ({200}, {400}, {404}, {405}, {413}, {415}):
        assert any(request.statuses == statuses for request in requests), statuses
    # Of most requests it is known what must come.
    assert np.mean([len(request.statuses) == 1 for request in requests]) > 0.85
    assert np.mean([request.statuses == {200} for request in requests]) > 0.4


GOOD = Request(
    content=b"",
    is_head=False,
    statuses=frozenset({200}),
    closes=False,
    contains=b"mine",
    expects_continue=False,
    head_bytes=0,
    what="good",
)
BAD = replace(GOOD, statuses=frozenset({400}), closes=True, what="bad")
ASKED = Conversation(
    number=0, requests=(GOOD, BAD), pipelined=True, sending="whole", cut=None, end="wait", reading="all"
)
OK = Answer(False, 200, "application/json", b"mine")
REFUSED = Answer(False, 400, "application/json", b'{"error": "why"}')


@pytest.mark.parametrize(
    ("requests", "answers", "closed", "expected"),
    [
        ((GOOD, BAD), [OK, REFUSED], True, None),
        ((GOOD, GOOD), [OK, OK], False, None),
        ((GOOD, BAD), [REFUSED], True, "400, expected [200]: good"),
        ((GOOD, BAD), [OK], True, "no answer: bad"),
        ((GOOD, BAD), [OK, REFUSED], False, "left open: bad"),
        ((GOOD, BAD), [OK, REFUSED, OK], True, "answers behind the last: bad"),
        ((GOOD, GOOD), [OK, OK, OK], False, "too many answers"),
        ((GOOD, GOOD), [OK, replace(OK, body=b"other")], False, "the answer is not of this request: good"),
        ((GOOD, BAD), [OK, replace(REFUSED, body=b"text")], True, "no JSON: b'text'"),
        ((GOOD, BAD), [OK, replace(REFUSED, body=b'{"error": "a", "b": 1}')], True, "error alone"),
        ((GOOD, BAD), [OK, replace(REFUSED, content_type="text/plain")], True, "error alone"),
        ((GOOD, BAD), [replace(OK, status=500)], True, "status 500"),
    ],
)
def test_a_wrong_answer_is_seen(
    requests: tuple[Request, ...], answers: list[Answer], closed: bool, expected: str | None
) -> None:
    found = problems(replace(ASKED, requests=requests), Received(answers, closed=closed))
    assert (not found) if expected is None else expected in " ".join(found)


@pytest.mark.parametrize(
    "sent",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nmine",
        b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nminerest",
        b"200 OK\r\n\r\n",
    ],
)
def test_what_is_no_http_is_seen(sent: bytes) -> None:
    reader = Reader(ASKED)
    for at in range(len(sent)):
        reader.feed(sent[at : at + 1])
    reader.feed(b"")
    assert "no HTTP" in reader.received.error


def test_answers_in_pieces_are_read_in_order() -> None:
    sent = b"HTTP/1.1 100 Continue\r\n\r\n"
    sent += b"".join(b"HTTP/1.1 20%d x\r\ncontent-length: 1\r\n\r\n%d" % (at, at) for at in range(3))
    for step in (1, 7, len(sent)):
        reader = Reader(ASKED)
        for at in range(0, len(sent), step):
            reader.feed(sent[at : at + step])
        reader.feed(b"")
        assert [(one.status, one.body) for one in reader.received.answers] == [(200, b"0"), (201, b"1"), (202, b"2")]
        assert (reader.received.provisional, reader.received.closed, reader.received.error) == (1, True, "")
