"""Random and mutated requests: each is answered in JSON or its connection is closed, and the server stays as it was."""

import asyncio
import gzip
import io
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from PIL import Image
from server_process import PATIENCE, Server, serving

from medserve import wire

TOLD = {400, 404, 405, 408, 413, 415, 431}
AT_ONCE = 500
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND")
ODD: list[Any] = [None, True, -1, 0, 1.5, 2**70, 1e308, "", "image", "\x00", [], {}, [[]], [-1], {"a": []}, "9" * 400]
SEGMENTS = [
    "v2",
    "models",
    "empty",
    "versions",
    "1",
    "infer",
    "classify",
    "..",
    ".",
    "",
    "%",
    "é",
    "\x00",
    "health",
    "/",
]

Request = tuple[bytes, bool]
"""What is sent, and whether it is HTTP whose head and body arrive, so that an answer must come."""


def framed(method: str, path: str, headers: dict[str, Any], body: bytes) -> bytes:
    lines = [f"{name}: {value}" for name, value in {**headers, "Content-Length": len(body)}.items()]
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *lines, "", ""]).encode() + body


def mutated(chance: random.Random, content: bytes) -> bytes:
    """`content` with a few bytes replaced, inserted, cut out or repeated, or its end cut off."""
    found = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at, length = chance.randrange(len(found) + 1), chance.randrange(8)
        found[at : at + length] = chance.choice(
            [chance.randbytes(chance.randrange(8)), bytes(found[at : at + 40]), b""]
        )
    return bytes(found[: chance.choice([len(found), len(found), chance.randrange(len(found) + 1)])])


def odd_json(chance: random.Random, value: Any) -> Any:
    """A JSON value with one of its parts replaced, left out or nested."""
    if not isinstance(value, dict | list) or not value or chance.random() < 0.2:
        return chance.choice([*ODD, [value], {"data": value}])
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = chance.choice(keys)
    changed = value.copy()
    if chance.random() < 0.15:
        del changed[key]
    else:
        changed[key] = odd_json(chance, value[key])
    return changed


def requests(seed: int, image: NDArray[np.uint8]) -> Iterator[Request]:
    """Requests without end; the same seed gives the same ones."""
    chance = random.Random(seed)
    infer, classify = "/v2/models/empty/infer", "/v2/models/empty/classify"
    file = io.BytesIO()
    Image.fromarray(image[0]).save(file, "PNG")
    binary, tensors = wire.encode_request(image, id="a")
    numbers = wire.encode_request(image, binary=False)[1]
    good = [framed("POST", infer, binary, tensors), framed("POST", infer, {}, numbers)]
    good += [framed("POST", classify, {}, file.getvalue()), framed("GET", "/metrics", {}, b"")]
    while True:
        kind = chance.randrange(8)
        if kind == 0:
            yield chance.randbytes(chance.randrange(400)), False
        elif kind == 1:
            yield mutated(chance, chance.choice(good)), False
        elif kind == 2:
            yield framed("POST", infer, binary, mutated(chance, tensors)), True
        elif kind == 3:
            body = json.dumps(odd_json(chance, json.loads(numbers))).encode()
            yield framed("POST", infer, {}, body), True
        elif kind == 4:
            length = chance.choice([-1, 0, 1, len(tensors), len(tensors) + 1, 10**30, "x", "", "1.0", "0x10"])
            headers = {wire.HEAD_LENGTH: length, "Content-Encoding": chance.choice(["identity", "gzip", "br", "é"])}
            yield framed("POST", infer, headers, tensors), True
        elif kind == 5:
            path = chance.choice(
                ["/v2", infer, classify, "/" + "/".join(chance.choices(SEGMENTS, k=chance.randrange(8)))]
            )
            yield framed(chance.choice(METHODS), quote(path, safe="/%" * chance.randrange(2)), {}, b""), True
        elif kind == 6:
            yield framed("POST", classify, {}, mutated(chance, file.getvalue())), True
        else:
            packed = mutated(chance, gzip.compress(numbers))
            yield framed("POST", infer, {"Content-Encoding": "gzip"}, packed), True


async def answer(address: tuple[str, int], content: bytes) -> tuple[int, bytes] | None:
    """Status and body of the first answer, or None where the connection ends without one."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        async with asyncio.timeout(PATIENCE):
            writer.write(content)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            return int(head.split()[1]), await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    finally:
        writer.close()


async def ask(server: Server, image: NDArray[np.uint8], count: int) -> Counter[int | None]:
    """How often each status came, None for a closed connection; and every answer is looked at."""
    found: Counter[int | None] = Counter()
    source = requests(0, image)

    async def client(number: int) -> None:
        for _ in range(number, count, AT_ONCE):
            content, complete = next(source)
            said = await answer(server.address, content)
            assert said is not None or not complete, content
            status, body = said or (None, b"")
            found[status] += 1
            if status is not None and status != 200:
                assert set(json.loads(body)) == {"error"}, content
                assert status in TOLD, (content, body)

    await asyncio.gather(*(client(number) for number in range(AT_ONCE)))
    return found


@pytest.mark.parametrize("count", [250, pytest.param(10_000, marks=pytest.mark.full)])
def test_every_request_is_answered_or_closed(empty: Path, image: NDArray[np.uint8], count: int, tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log, serving(empty, "--runtime", "null", stderr=log) as server:
        process = psutil.Process(server.child.pid)
        assert server.infer(image).status == 200
        used = process.memory_info().rss
        found = asyncio.run(ask(server, image, count))
        print(dict(found))
        assert found.total() == count
        assert {200, 400, 404, 405, 408, 415} <= set(found)
        assert process.memory_info().rss < used + (64 << 20)
        end = time.monotonic() + PATIENCE
        while process.num_fds() > 100:
            assert time.monotonic() < end, "connections stay open"
        assert server.infer(image).scores == pytest.approx(0.125)
    events = [json.loads(line)["event"] for line in (tmp_path / "log").read_text().splitlines()]
    assert events == ["serving", "draining", "ended"]
