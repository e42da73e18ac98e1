"""The `/metrics` page for Prometheus: requests, durations of stages, batch sizes, queue length, process resources.

Every request updates the counts, and the library's own counters would cost as much time as the rest of the wrapper.
Durations are therefore counted by the two highest bits of their nanoseconds; the library only writes the page.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest

from serve.scheduler import Dispatch

STAGES = ("queue", "decode", "infer", "encode", "total")
SHORTEST, LONGEST = 10, 34
"""Bit lengths of the first and the last buckets of durations: below 1 microsecond and below 17 s; each has two."""
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The metrics of one served model; `infer` reports batch sizes and the queue length."""

    def __init__(self, model: str, infer: Dispatch) -> None:
        self._model = model
        self._infer = infer
        # Error responses by status; successful ones are counted by their stages.
        self._statuses: Counter[int] = Counter()
        # Per stage: counts by bucket, two for each bit length, then the sum of nanoseconds.
        self._stages = [[0] * 131 for _ in STAGES]
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def answered(self, queue: int, decode: int, infer: int, encode: int) -> None:
        """Count a successful request; its stages are in nanoseconds."""
        durations = (queue, decode, infer, encode, queue + decode + infer + encode)
        for counts, duration in zip(self._stages, durations, strict=True):
            bits = duration.bit_length()
            counts[2 * bits + (duration >> bits - 2 & 1 if bits > 1 else 0)] += 1
            counts[-1] += duration

    def refused(self, status: int) -> None:
        """Count an error response."""
        self._statuses[status] += 1

    def page(self) -> bytes:
        """The page in the text format of Prometheus."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Called by the library: the current value of every metric."""
        labels = [self._model]
        requests = CounterMetricFamily(
            "inference_requests", "Inference and classification requests by HTTP status.", labels=("model", "status")
        )
        answered = sum(self._stages[0][:-1])
        for status, count in sorted({**self._statuses, 200: answered}.items()):
            requests.add_metric([*labels, str(status)], count)
        yield requests
        duration = HistogramMetricFamily(
            "inference_duration_seconds",
            "Seconds of a successful request, by stage.",
            labels=("model", "stage"),
        )
        # A duration of b bits is below 2 ** b nanoseconds, and in the first of its two buckets below 3/4 of that.
        places = range(2 * SHORTEST, 2 * LONGEST + 2)
        bounds = [((1 << place // 2) * (4 if place % 2 else 3) // 4 - 1) / 1e9 for place in places]
        for stage, counts in zip(STAGES, self._stages, strict=True):
            *by_place, total = counts
            running = [0, *accumulate(by_place)]
            below = [running[place + 1] for place in places]
            duration.add_metric([*labels, stage], _buckets(bounds, [*below, running[-1]]), total / 1e9)
        yield duration
        images = HistogramMetricFamily("inference_batch_size", "Images per prediction.", labels=("model",))
        batches = dict(self._infer.batches)
        below = [sum(count for size, count in batches.items() if size <= bound) for bound in IMAGES]
        total = sum(size * count for size, count in batches.items())
        images.add_metric(labels, _buckets(IMAGES, [*below, sum(batches.values())]), total)
        yield images
        waiting = GaugeMetricFamily(
            "inference_queue_length", "Requests that wait for an inference thread.", labels=("model",)
        )
        waiting.add_metric(labels, self._infer.waiting())
        yield waiting


def _buckets(bounds: Sequence[float], below: Sequence[int]) -> list[tuple[str, float]]:
    names = [*(str(float(bound)) for bound in bounds), "+Inf"]
    return [(name, float(count)) for name, count in zip(names, below, strict=True)]
