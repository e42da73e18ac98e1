"""The server beside its OpenAPI document: whatever that allows or forbids is sent, and answered as it says."""

import gzip
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import schemathesis
from http_contents import encoded
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from server_process import PATIENCE, Server, serving

from medserve import wire

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
IMAGES = np.zeros((2, 28, 28, 3), np.uint8)


@pytest.fixture(scope="module")
def null(empty: Path) -> Iterator[Server]:
    with serving(empty, "--runtime", "null") as server:
        yield server


def operations(server: Server) -> dict[str, Any]:
    """What the document offers, by method and path."""
    document = schemathesis.openapi.from_url(f"{server.url}/openapi.json", timeout=PATIENCE)
    return {result.ok().label: result.ok() for result in document.get_all_operations()}


@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize("examples", [25, pytest.param(1000, marks=pytest.mark.full)])
def test_every_answer_is_as_the_document_says(null: Server, mode: GenerationMode, examples: int) -> None:
    """By requests that satisfy the document's schemas, and by such that do not, where there is a schema."""
    statuses: Counter[str] = Counter()
    for label, operation in operations(null).items():
        if mode is GenerationMode.NEGATIVE and not label.endswith("/infer"):
            continue

        @settings(
            max_examples=examples,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case: schemathesis.Case) -> None:
            answer = case.call_and_validate(checks=CHECKS, timeout=PATIENCE)
            statuses[f"{case.operation.method} {answer.status_code}"] += 1  # called at once

        check()
    print(dict(statuses))
    assert set(statuses) == {"post 400"} | ({"get 200"} if mode is GenerationMode.POSITIVE else set())


def tensor(*, binary: bool, **more: object) -> tuple[bytes, dict[str, str]]:
    headers, body = wire.encode_request(IMAGES, binary=binary, id="a")
    if more:
        body = body[:-1] + b"," + msgspec.json.encode(more)[1:]
    return body, headers


LIKELIEST = {"outputs": [{"name": "probabilities", "parameters": {"classification": 2}}]}
JSON = {"Content-Type": wire.JSON}


@pytest.mark.parametrize(
    ("route", "body", "headers", "status"),
    [
        ("infer", *tensor(binary=False), 200),
        ("infer", *tensor(binary=True), 200),
        ("infer", *tensor(binary=False, **LIKELIEST), 200),
        ("infer", *tensor(binary=False, parameters={"binary_data_output": True}), 200),
        ("infer", gzip.compress(tensor(binary=False)[0]), {**JSON, "Content-Encoding": "gzip"}, 200),
        ("infer", b"{}", {**JSON, "Content-Encoding": "br"}, 415),
        ("infer", bytes(1_000_000), JSON, 413),
        ("infer", b"{}", JSON, 400),
        ("classify", encoded("PNG", 28), {"Content-Type": "image/png"}, 200),
        ("classify", encoded("JPEG"), {"Content-Type": "image/jpeg"}, 200),
        ("classify", encoded("WEBP"), {"Content-Type": "image/webp"}, 200),
        ("classify", b"no image", {"Content-Type": "image/png"}, 400),
        ("classify", encoded("PNG"), {"Content-Type": "image/png", "Content-Encoding": "br"}, 415),
    ],
    ids=lambda value: "" if isinstance(value, bytes | dict) else None,
)
def test_good_and_refused_requests_are_as_the_document_says(
    null: Server, route: str, body: bytes, headers: dict[str, str], status: int
) -> None:
    for path in (f"/v2/models/{null.model}", f"/v2/models/{null.model}/versions/1"):
        operation = operations(null)[f"POST {path}/{route}"]
        case = operation.Case(body=body, media_type="application/octet-stream", headers=headers)
        assert case.call_and_validate(checks=CHECKS, timeout=PATIENCE).status_code == status
