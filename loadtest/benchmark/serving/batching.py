"""The gain of batching, and the gain that the model's own times predict.

Without batching, a request takes the time of one image and the server's own; in a batch it takes its share of the
batch's time, and the same for the server. The server's own time is that of the null runtime, under the same load.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from loadtest.benchmark.bench import Bench, Line, tell
from loadtest.benchmark.serving.comparison import MODEL_FILE, InProcess, golden_image
from loadtest.generator.payload import infer_url
from loadtest.measure.server_process import ServerProcess
from loadtest.selftest.reference_client import closed_loop
from medserve import machine, wire

CONNECTIONS = (8, 16)
"""Connections, and as many images per batch."""
DELAY_MS = 5.0
SHARE = 0.8
ALONE = 1.05


class _Served(NamedTuple):
    """Servers of a runtime by their largest batch, and the seconds of its batches in process by their images."""

    servers: dict[int, ServerProcess]
    seconds: Callable[[int], float]
    requests: int


def gains(bench: Bench, model: Path, rounds: int, count: int) -> Iterator[Line]:
    """The gain of batching over the predicted gain, and its cost for one connection; `model` is an artifact in ONNX.

    For the model, and for a runtime whose batches take as long as an image.
    """
    image = golden_image(model)
    with ExitStack() as stack:

        def serve(runtime: str, batch: int, **rest: Any) -> ServerProcess:
            sizes = tuple(size for size in (1, 2, 4, 8, 16) if size <= batch)
            return stack.enter_context(
                bench.serving(
                    runtime, size=len(image), dispatch="thread", batch_images=batch, batch_sizes=sizes, **rest
                )
            )

        alone = InProcess(Path(sys.executable), model / MODEL_FILE, bench.server_cpus)
        stack.callback(alone.stop)
        delays = {"delays_ms": [DELAY_MS]}
        batches = (1, *CONNECTIONS)
        kinds = {
            "model": _Served(
                {batch: serve("onnx_runtime", batch, artifact=model) for batch in batches},
                lambda images: median(alone.times(images, count // images).tolist()) / 1e9,
                count,
            ),
            f"{DELAY_MS:g} ms for any batch": _Served(
                {batch: serve("delay", batch, options=delays) for batch in batches},
                lambda _: DELAY_MS / 1e3,
                count // 2,
            ),
        }
        null = serve("null", 1)

        def load(server: ServerProcess, connections: int, requests: int) -> tuple[float, float]:
            """Requests per second, and the median latency in microseconds."""
            url = infer_url(server.url, server.model)
            request = wire.http_request(url, *wire.encode_request(image[None]))
            block = closed_loop(url, request, connections, requests)
            return block.per_second, median(block.latencies.tolist()) / 1e3

        stack.callback(machine.pin, machine.usable_cpus())
        machine.pin(bench.client_cpus)
        measured, predicted, alone_ratios = (defaultdict[Any, list[float]](list) for _ in range(3))
        for number in range(rounds):
            tell(f"batching, round {number + 1} of {rounds}")
            for connections in CONNECTIONS:
                floor = 1 / load(null, connections, count)[0]
                for name, kind in kinds.items():
                    one, many = (load(kind.servers[batch], connections, kind.requests)[0] for batch in (1, connections))
                    measured[name, connections].append(many / one)
                    share = kind.seconds(connections) / connections
                    predicted[name, connections].append((kind.seconds(1) + floor) / (share + floor))
            for name, kind in kinds.items():
                without, batching = (load(kind.servers[batch], 1, kind.requests)[1] for batch in (1, CONNECTIONS[0]))
                alone_ratios[name].append(batching / without)
    for (name, connections), ratios in measured.items():
        expected = predicted[name, connections]
        shares = [ratio / most for ratio, most in zip(ratios, expected, strict=True)]
        words = f"{name}, {connections} connections: gain over the predicted gain"
        note = f"{median(ratios):.2f} times the throughput, of {median(expected):.2f}; {_range(shares)}"
        yield Line(part="batching", name=words, value=median(shares), low=SHARE, note=note)
    for name, ratios in alone_ratios.items():
        words = f"{name}, one connection: p50 with batching to that without"
        yield Line(part="batching", name=words, value=median(ratios), high=ALONE, note=_range(ratios))


def _range(values: list[float]) -> str:
    return f"rounds {min(values):.3f} to {max(values):.3f}"
