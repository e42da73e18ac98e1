"""Three times as many requests as the runtime can answer: some are answered in time, the rest refused at once."""

import asyncio
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families
from server_process import PATIENCE, Server, serving

from medserve import wire
from medserve.tables import LIMITS
from medserve.timing import now
from serve import protocol

DELAY_MS, DEADLINE_MS = 5, 100
RATE = 3 * 1000 // DELAY_MS
CONNECTIONS = 60


@dataclass
class Seen:
    """Answers by status, milliseconds that the client waited for each, and stages of those that were answered well."""

    statuses: Counter[int] = field(default_factory=Counter)
    waited: dict[int, list[float]] = field(default_factory=dict)
    served: list[float] = field(default_factory=list)


async def overload(server: Server, content: bytes, seconds: float) -> Seen:
    """Requests on a schedule, whatever comes of them."""
    seen = Seen()
    started = now()

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection(*server.address)
        for at in range(number, round(RATE * seconds), CONNECTIONS):
            await asyncio.sleep((started - now()) / 1e9 + at / RATE)
            sent = now()
            writer.write(content)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            fields = dict(line.split(": ", 1) for line in head[1:] if line)
            await reader.readexactly(int(fields["content-length"]))
            status = int(head[0].split()[1])
            seen.statuses[status] += 1
            seen.waited.setdefault(status, []).append((now() - sent) / 1e6)
            if status == 200:
                stages = wire.parse_server_timing(fields["server-timing"])
                seen.served.append((stages["queue"] + stages["infer"]) / 1e6)
            elif status == 503:
                assert fields["retry-after"] == "1"
        writer.close()

    async with asyncio.timeout(seconds + PATIENCE):
        await asyncio.gather(*(client(number) for number in range(CONNECTIONS)))
    return seen


def counted(page: bytes) -> dict[int, float]:
    families = text_string_to_metric_families(page.decode())
    requests = next(family for family in families if family.name == "inference_requests")
    return {int(sample.labels["status"]): sample.value for sample in requests.samples}


def test_the_client_has_fewer_requests_in_flight_than_the_server_takes_connections(empty: Path) -> None:
    """Overload becomes a queue in the client: a refused connection would be a failure of the server."""
    with serving(empty, "--runtime", "null") as server:
        assert LIMITS.connections < server.facts["connections"] == protocol.CONNECTIONS


@pytest.mark.parametrize("seconds", [2, pytest.param(60, marks=pytest.mark.full)])
def test_overload_is_refused_and_what_is_accepted_is_in_time(
    empty: Path, image: NDArray[np.uint8], seconds: int
) -> None:
    headers, body = wire.encode_request(image)
    lines = [f"{name}: {value}" for name, value in {**headers, "Content-Length": len(body)}.items()]
    words = ["--runtime", "delay", "--options", json.dumps({"delays_ms": [DELAY_MS]})]
    words += ["--dispatch", "thread", "--deadline", str(DEADLINE_MS)]
    with serving(empty, *words) as server:
        content = "\r\n".join([f"POST {server.infer_path} HTTP/1.1", "Host: x", *lines, "", ""]).encode() + body
        process = psutil.Process(server.child.pid)
        asyncio.run(overload(server, content, 0.5))
        used, before = process.memory_info().rss, counted(server.ask("GET", "/metrics").body)
        seen = asyncio.run(overload(server, content, seconds))
        for status, waited in sorted(seen.waited.items()):
            print(status, len(waited), "p50 and p99 ms:", *np.percentile(waited, (50, 99)).round(2))
        print("memory grew by", (process.memory_info().rss - used) >> 10, "KiB; served p99 ms:", max(seen.served))
        assert set(seen.statuses) <= {200, 503, 504}
        assert seen.statuses.total() == RATE * seconds
        assert seen.statuses[200] > 0
        assert seen.statuses[503] > seen.statuses[504], "the rest was kept waiting"
        # A little more lies between the stamps than between the looks at the deadline.
        assert np.percentile(seen.served, 90) < DEADLINE_MS + 1
        assert process.memory_info().rss < used + (16 << 20)
        after = counted(server.ask("GET", "/metrics").body)
        assert {status: after[status] - before.get(status, 0) for status in seen.statuses} == seen.statuses
        assert server.infer(image).scores == pytest.approx(0.125)
        assert server.ask("GET", "/v2/health/ready").status == 200
