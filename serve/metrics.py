"""The `/metrics` page for Prometheus: requests, durations of stages, batch sizes, queue length, process resources.

Every request updates the counts, and the library's own counters would cost as much time as the rest of the wrapper.
Durations are therefore counted by the bit length of their nanoseconds; the library only writes the page.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest

from serve.scheduler import Dispatch

STAGES = ("queue", "decode", "infer", "encode")
SHORTEST, LONGEST = 10, 34
"""Bit lengths of the first and the last bucket of durations: below 1 microsecond and below 17 s."""
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The metrics of one served model; `infer` reports batch sizes and the queue length."""

    def __init__(self, model: str, infer: Dispatch) -> None:
        self._model = model
        self._infer = infer
        # Error responses by status; successful ones are counted by their stages.
        self._statuses: Counter[int] = Counter()
        # Per stage: counts by bit length, then the sum of nanoseconds.
        self._stages = [[0] * 66 for _ in STAGES]
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def answered(self, queue: int, decode: int, infer: int, encode: int) -> None:
        """Count a successful request; its stages are in nanoseconds."""
        of_queue, of_decode, of_infer, of_encode = self._stages
        of_queue[queue.bit_length()] += 1
        of_queue[-1] += queue
        of_decode[decode.bit_length()] += 1
        of_decode[-1] += decode
        of_infer[infer.bit_length()] += 1
        of_infer[-1] += infer
        of_encode[encode.bit_length()] += 1
        of_encode[-1] += encode

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
            "inference_duration_seconds", "Seconds per stage of a successful request.", labels=("model", "stage")
        )
        # A duration of b bits is below 2 ** b nanoseconds.
        bounds = [((1 << bits) - 1) / 1e9 for bits in range(SHORTEST, LONGEST + 1)]
        for stage, counts in zip(STAGES, self._stages, strict=True):
            *by_bits, total = counts
            below = [sum(by_bits[: bits + 1]) for bits in range(SHORTEST, LONGEST + 1)]
            duration.add_metric([*labels, stage], _buckets(bounds, [*below, sum(by_bits)]), total / 1e9)
        yield duration
        images = HistogramMetricFamily("inference_batch_size", "Images per prediction.", labels=("model",))
        batches = dict(self._infer.batches)
        below = [sum(count for size, count in batches.items() if size <= bound) for bound in IMAGES]
        total = sum(size * count for size, count in batches.items())
        images.add_metric(labels, _buckets(IMAGES, [*below, sum(batches.values())]), total)
        yield images
        waiting = GaugeMetricFamily(
            "inference_queue_length", "Requests that wait for the inference thread.", labels=("model",)
        )
        waiting.add_metric(labels, self._infer.waiting())
        yield waiting


def _buckets(bounds: Sequence[float], below: Sequence[int]) -> list[tuple[str, float]]:
    names = [*(str(float(bound)) for bound in bounds), "+Inf"]
    return [(name, float(count)) for name, count in zip(names, below, strict=True)]
