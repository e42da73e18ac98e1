"""What Prometheus reads, and what the OpenAPI document promises."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, validate
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families
from server_process import Answer, Server, serving
from test_images import encoded

from serve.metrics import Metrics
from serve.scheduler import Outcome


@pytest.fixture(scope="module")
def served(onnx: Path) -> Iterator[Server]:
    with serving(onnx, "--dispatch", "thread") as server:
        yield server


def samples(page: bytes) -> dict[tuple[str, ...], float]:
    """Every sample by its name and labels, without the model's."""
    families = text_string_to_metric_families(page.decode())
    return {
        (
            sample.name,
            *(f"{key}={value}" for key, value in sorted(sample.labels.items()) if key != "model"),
        ): sample.value
        for family in families
        for sample in family.samples
    }


def test_every_request_is_counted_once_in_each_stage(served: Server, image: NDArray[np.uint8]) -> None:
    before = samples(served.ask("GET", "/metrics").body)
    for _ in range(3):
        served.infer(np.repeat(image, 2, 0))
    served.ask("POST", served.infer_path, b"nonsense")
    answer = served.ask("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    after = samples(answer.body)
    added = {key: after[key] - before.get(key, 0) for key in after}
    assert added["inference_requests_total", "status=200"] == 3
    assert added["inference_requests_total", "status=400"] == 1
    for stage in ("queue", "decode", "infer", "encode"):
        name = "inference_duration_seconds"
        assert added[f"{name}_count", f"stage={stage}"] == 3
        assert added[f"{name}_bucket", "le=+Inf", f"stage={stage}"] == 3
        assert added[f"{name}_sum", f"stage={stage}"] > 0
    assert added["inference_batch_size_sum",] == 6
    assert added["inference_batch_size_bucket", "le=1.0"] == 0
    assert added["inference_batch_size_bucket", "le=2.0"] == 3
    assert after["inference_queue_length",] == 0


class Predicted:
    """What the metrics ask a dispatch for."""

    def __init__(self) -> None:
        self.batches = Counter({1: 3, 2: 1, 33: 2})

    def waiting(self) -> int:
        return 5

    async def __call__(self, images: NDArray[np.uint8], within: int | None = None, /) -> Outcome:
        raise NotImplementedError


@given(st.lists(st.integers(0, 2 * 10**10), min_size=1, max_size=20))
def test_every_duration_is_in_the_buckets_that_hold_it(durations: list[int]) -> None:
    metrics = Metrics("m", Predicted())
    for duration in durations:
        metrics.answered(0, 1, duration, 2)
    found = samples(metrics.page())
    assert found["inference_duration_seconds_sum", "stage=infer"] == pytest.approx(sum(durations) / 1e9)
    bounds = [key[1].removeprefix("le=") for key in found if key[0].endswith("seconds_bucket") and "infer" in key[2]]
    assert len(bounds) == 51
    for bound in bounds:
        below = sum(duration <= float(bound) * 1e9 + 0.01 for duration in durations)
        assert found["inference_duration_seconds_bucket", f"le={bound}", "stage=infer"] == below


def test_predictions_are_counted_by_their_images() -> None:
    found = samples(Metrics("m", Predicted()).page())
    below = {bound: found["inference_batch_size_bucket", f"le={bound}"] for bound in ("1.0", "2.0", "32.0", "+Inf")}
    assert below == {"1.0": 3, "2.0": 4, "32.0": 4, "+Inf": 6}
    assert found["inference_batch_size_sum",] == 3 + 2 + 66
    assert found["inference_queue_length",] == 5
    assert found["process_resident_memory_bytes",] > 0


def promised(document: dict[str, object], path: str, method: str, answer: Answer) -> None:
    """Hold an answer to what the document says of it."""
    operation = document["paths"][path][method]  # type: ignore[index]  # plain JSON
    content = operation["responses"][str(answer.status)]["content"]
    kind = answer.headers["content-type"].partition(";")[0]
    assert kind in content
    Draft202012Validator.check_schema(content[kind].get("schema", {}))
    if kind == "application/json":
        validate(answer.json, content[kind]["schema"])


def test_the_openapi_document_is_true(served: Server, image: NDArray[np.uint8]) -> None:
    document = served.ask("GET", "/openapi.json").json
    assert document["openapi"].startswith("3.1")
    for path, methods in document["paths"].items():
        if "get" in methods:
            promised(document, path, "get", served.ask("GET", path))
    for prefix in (f"/v2/models/{served.model}", f"/v2/models/{served.model}/versions/1"):
        promised(document, f"{prefix}/infer", "post", served.infer(image, binary=False))
        promised(document, f"{prefix}/infer", "post", served.ask("POST", f"{prefix}/infer", b"nonsense"))
        promised(document, f"{prefix}/classify", "post", served.ask("POST", f"{prefix}/classify", encoded(image[0])))
        promised(document, f"{prefix}/classify", "post", served.ask("POST", f"{prefix}/classify", b"nonsense"))
    unknown = served.ask("GET", "/nowhere")
    assert unknown.status == 404
    assert all(path in unknown.error for path in document["paths"] if path != "/openapi.json")
