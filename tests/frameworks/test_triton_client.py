"""Triton's own HTTP client, unchanged, in each of its modes."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_process import Server, serving

from medserve import store

triton = pytest.importorskip("tritonclient.http")


@pytest.fixture(scope="module", params=["torchscript", "onnx"])
def folder(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Server]:
    with serving(folder, "--dispatch", "thread") as server:
        yield server


@pytest.fixture(scope="module")
def client(served: Server) -> Iterator[Any]:
    with triton.InferenceServerClient(served.url.removeprefix("http://"), concurrency=4) as client:
        yield client


@pytest.fixture(scope="module")
def golden(folder: Path) -> tuple[Any, Any]:
    with np.load(folder / "golden.npz") as file:
        return file["images"][:3], file["scores"][:3]


def asked(images: Any, *, binary: bool = True) -> list[Any]:
    tensor = triton.InferInput("image", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images, binary_data=binary)
    return [tensor]


def test_health_and_metadata(client: Any, folder: Path) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(folder.name)
    assert client.is_model_ready(folder.name, "1")
    assert not client.is_model_ready(folder.name, "2")
    assert not client.is_model_ready("other")
    metadata = client.get_server_metadata()
    assert metadata["name"] == "medserve"
    assert {"binary_tensor_data", "classification", "schedule_policy"} <= set(metadata["extensions"])
    metadata = client.get_model_metadata(folder.name)
    assert metadata["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 28, 28, 3]}]
    assert metadata["outputs"] == [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 8]}]
    assert client.get_model_config(folder.name, "1")["max_batch_size"] == 32


def test_tensors_in_json_and_binary_both_ways_compressed_or_not(client: Any, folder: Path, golden: Any) -> None:
    images, expected = golden
    binary, json = (triton.InferRequestedOutput("probabilities", binary_data=flag) for flag in (True, False))
    packings = (None, "gzip", "deflate")
    for sent, chosen, packing, unpacking in product((True, False), (None, [binary], [json]), packings, packings):
        result = client.infer(
            folder.name,
            asked(images, binary=sent),
            outputs=chosen,
            request_id="seven",
            request_compression_algorithm=packing,
            response_compression_algorithm=unpacking,
        )
        assert result.as_numpy("probabilities") == pytest.approx(expected, abs=1e-4)
        assert result.get_response()["id"] == "seven"
        assert result.get_response()["model_version"] == "1"
        assert ("data" in result.get_output("probabilities")) == (chosen == [json])


def test_the_likeliest_classes(client: Any, folder: Path, golden: Any) -> None:
    images, expected = golden
    classes = store.read_artifact(folder).checkpoint.classes
    for binary, count in product((True, False), (1, 3, 100)):
        output = triton.InferRequestedOutput("probabilities", binary_data=binary, class_count=count)
        found = client.infer(folder.name, asked(images), outputs=[output]).as_numpy("probabilities")
        assert found.shape == (3, min(count, 8))
        for row, scores in zip(found, expected, strict=True):
            for text, at in zip(row, np.argsort(-scores, kind="stable"), strict=False):
                score, index, name = (text.decode() if isinstance(text, bytes) else text).split(":", 2)
                assert (int(index), name) == (at, classes[at])
                assert float(score) == pytest.approx(scores[at], abs=2e-4)


def test_a_request_without_an_id_gets_none(client: Any, folder: Path, golden: Any) -> None:
    assert "id" not in client.infer(folder.name, asked(golden[0])).get_response()


def test_parameters_of_any_kind(client: Any, folder: Path, golden: Any) -> None:
    images, expected = golden
    result = client.infer(
        folder.name,
        asked(images),
        model_version="1",
        sequence_id=7,
        sequence_start=True,
        sequence_end=True,
        priority=2,
        timeout=60_000_000,
        headers={"X-Mine": "1"},
        query_params={"mine": ["a", "b"]},
        parameters={"text": "a", "number": 3, "truth": True, "part": 0.5},
    )
    assert result.as_numpy("probabilities") == pytest.approx(expected, abs=1e-4)


def test_a_timeout_is_a_deadline(client: Any, folder: Path, golden: Any) -> None:
    with pytest.raises(triton.InferenceServerException, match="deadline of this request passed") as refusal:
        client.infer(folder.name, asked(golden[0]), timeout=1)
    assert refusal.value.status() == "504"


def test_many_at_once(client: Any, folder: Path, golden: Any) -> None:
    images, expected = golden
    pending = [client.async_infer(folder.name, asked(images[at % 3 : at % 3 + 1])) for at in range(20)]
    for at, one in enumerate(pending):
        scores = one.get_result().as_numpy("probabilities")
        assert scores[0] == pytest.approx(expected[at % 3], abs=1e-4)


def test_bodies_that_the_client_only_makes_and_reads(served: Server, golden: Any) -> None:
    images, expected = golden
    body, head_length = triton.InferenceServerClient.generate_request_body(asked(images))
    answer = served.ask("POST", served.infer_path, body, {"Inference-Header-Content-Length": str(head_length)})
    length = int(answer.headers["inference-header-content-length"])
    result = triton.InferenceServerClient.parse_response_body(answer.body, header_length=length)
    assert result.as_numpy("probabilities") == pytest.approx(expected, abs=1e-4)


def test_what_is_not_offered_is_told(client: Any, folder: Path, golden: Any) -> None:
    other = [triton.InferRequestedOutput("logits")]
    for reason, call in (
        ("expected only 'probabilities'", lambda: client.infer(folder.name, asked(golden[0]), outputs=other)),
        ("unknown model 'other'", lambda: client.infer("other", asked(golden[0]))),
        ("unknown version '2'", lambda: client.infer(folder.name, asked(golden[0]), model_version="2")),
        ("unknown path '/v2/repository/index'", lambda: client.get_model_repository_index()),
        ("unknown path", lambda: client.get_inference_statistics(folder.name)),
    ):
        with pytest.raises(triton.InferenceServerException, match=reason):
            call()
