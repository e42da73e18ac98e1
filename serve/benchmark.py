"""`python -m serve.benchmark`: the time per request that the wrapper adds.

The latency of the wrapper with the null runtime, minus that of a bare ASGI application that reads the body and sends a
constant response, both over a single connection and on the same uvicorn, uvloop and HTTP protocol. Blocks of requests
to each alternate, so that disturbances of the machine affect both. The servers share a core, the client has another.
"""

import socket
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import OK, HTTPResponse
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
import numpy as np
import psutil
import typer
from numpy.typing import NDArray

from medserve import errors, machine, process, wire
from medserve.empty import empty_artifact
from medserve.timing import gc_paused, now

TARGETS = {28: 25.0, 224: 60.0}
"""Microseconds per request that the wrapper may add, by the side of the images in pixels."""

PAUSE = 200_000
"""Nanoseconds between a response and the next request. Without them a server that ends its work on a request sooner
seems slower: it is asleep when the next request arrives, while the other one is not and need not be woken."""


class Cost(msgspec.Struct, frozen=True):
    """Microseconds per request at an image size; `difference` of the p50s of paired blocks: median and quartiles."""

    size: int
    requests: int
    bare_p50: float
    wrapper_p50: float
    difference: float
    difference_low: float
    difference_high: float
    bare_cpu: float
    wrapper_cpu: float
    target: float | None


class Client:
    """A keep-alive connection to the server of process `pid` that repeats a request, whose response is always the same.

    Raises CannotRun when the response is not a 200.
    """

    def __init__(self, pid: int, url: str, image: NDArray[np.uint8]) -> None:
        self._process = psutil.Process(pid)
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname or "", parts.port or 80))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request = wire.http_request(f"{url}/v2/models/empty/infer", *wire.encode_request(image))
        self._socket.sendall(self._request)
        response = HTTPResponse(self._socket)
        response.begin()
        self._end = response.read()
        if response.status != OK:
            raise errors.CannotRun(f"{url} answered {response.status}: {self._end[:500]!r}")

    def cpu_seconds(self) -> float:
        """CPU seconds of the server."""
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def block(self, count: int) -> float:
        """The median latency of `count` requests, in microseconds."""
        receive, send, request, end = self._socket.recv, self._socket.sendall, self._request, self._end
        times = []
        with gc_paused():
            for _ in range(count):
                before = now()
                send(request)
                response = receive(65536)
                while not response.endswith(end):
                    response += receive(65536)
                after = now()
                times.append(after - before)
                while now() - after < PAUSE:
                    pass
        return statistics.median(times) / 1e3


async def bare(_scope: Any, receive: Any, send: Any) -> None:
    """The baseline: an ASGI application that does nothing."""
    while (await receive())["more_body"]:
        pass
    headers = [(b"content-type", b"application/octet-stream"), (b"content-length", b"200")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": bytes(200)})


def measure(size: int, blocks: int, requests: int) -> Cost:
    """The time that the wrapper adds per request with one image of `size` x `size` pixels, over pairs of blocks."""
    server_cpus, client_cpus = machine.divide_cpus(1)
    cpus = ",".join(map(str, server_cpus))
    image = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        empty_artifact(Path(folder), size)
        null = ["-m", "serve", folder, "--runtime", "null", "--port", "0", "--cpus", cpus]
        with _client(["-m", "serve.benchmark", "--bare", cpus], image) as bare_, _client(null, image) as wrapper:
            own_cpus = machine.usable_cpus()
            machine.pin(client_cpus)
            sides = bare_, wrapper
            for side in sides:
                side.block(requests)
            before = [side.cpu_seconds() for side in sides]
            pairs = [(bare_.block(requests), wrapper.block(requests)) for _ in range(blocks)]
            used = [side.cpu_seconds() - start for side, start in zip(sides, before, strict=True)]
            machine.pin(own_cpus)
    bare_cpu, wrapper_cpu = (seconds / blocks / requests * 1e6 for seconds in used)
    low, middle, high = statistics.quantiles([second - first for first, second in pairs], n=4)
    return Cost(
        size=size,
        requests=blocks * requests,
        bare_p50=statistics.median(pair[0] for pair in pairs),
        wrapper_p50=statistics.median(pair[1] for pair in pairs),
        difference=middle,
        difference_low=low,
        difference_high=high,
        bare_cpu=bare_cpu,
        wrapper_cpu=wrapper_cpu,
        target=TARGETS.get(size),
    )


@contextmanager
def _client(arguments: list[str], image: NDArray[np.uint8]) -> Iterator[Client]:
    """The client of a server, a child that ends with the block."""
    child = process.start(arguments, stdout=subprocess.PIPE, env={errors.EVENTS: "1"})
    try:
        assert child.stdout is not None
        event = msgspec.json.decode(
            child.stdout.readline() or b'{"event":"error","reason":"it ended without a message"}'
        )
        if event["event"] != "ready":
            raise errors.CannotRun(f"{' '.join(arguments)}: {event['reason']}")
        yield Client(child.pid, event["url"], image)
    finally:
        process.stop(child)


def _serve_bare(cpus: str) -> None:
    from serve import http_server
    from serve.protocol import Limits

    machine.pin(tuple(map(int, cpus.split(","))))
    with http_server.bind("127.0.0.1", 0) as listener:
        url = "http://{}:{}".format(*listener.getsockname())
        ready = msgspec.json.encode({"event": "ready", "url": url}).decode()
        limits = Limits(64 << 20)
        http_server.serve(bare, listener, limits, lambda _: print(ready, flush=True))


def _table(costs: list[Cost]) -> None:
    print("  px  bare p50  wrapper p50  difference (quartiles)  target   CPU bare  CPU wrapper  [us per request]")
    for cost in costs:
        spread = f"{cost.difference:.1f} ({cost.difference_low:.1f} to {cost.difference_high:.1f})"
        target = "" if cost.target is None else f"{cost.target:.0f}"
        print(
            f"{cost.size:>4}  {cost.bare_p50:>8.1f}  {cost.wrapper_p50:>11.1f}  {spread:>22}  {target:>6}  "
            f"{cost.bare_cpu:>9.1f}  {cost.wrapper_cpu:>11.1f}"
        )


def benchmark(
    sizes: Annotated[str, typer.Option(help="Sides of the images in pixels, separated by commas.")] = "28,224",
    blocks: Annotated[int, typer.Option(min=2, help="Pairs of blocks per size.")] = 40,
    requests: Annotated[int, typer.Option(min=1, help="Requests per block.")] = 500,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    bare_cpus: Annotated[str | None, typer.Option("--bare", hidden=True)] = None,
) -> None:
    """Measure the time per request that the wrapper adds to a bare ASGI application on the same HTTP server.

    Example: python -m serve.benchmark --sizes 28,224 --blocks 40
    """
    if bare_cpus is not None:
        _serve_bare(bare_cpus)
        return
    costs = [measure(int(size), blocks, requests) for size in sizes.split(",")]
    if json:
        print(msgspec.json.format(msgspec.json.encode(costs), indent=1).decode())
    else:
        _table(costs)


if __name__ == "__main__":
    errors.main(lambda: typer.run(benchmark))
