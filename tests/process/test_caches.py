"""Compile caches that outlive the process: filled by the first start, read by the second, the same scores from both."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from conftest import Artifacts, check_stage, run_stage, why_not
from server_process import serving


def files(folder: Path) -> dict[str, int]:
    """Of a cache, without what is only a note of when it was read."""
    return {path.name: path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.suffix != ".atime"}


FORMAT = {"stablehlo": ("flax_nnx", "stablehlo"), "openvino_cpu": ("pytorch", "onnx")}


@pytest.mark.parametrize("runtime", FORMAT)
def test_the_second_start_reads_what_the_first_compiled(runtime: str, artifact_of: Artifacts, tmp_path: Path) -> None:
    if reason := why_not(runtime):
        pytest.skip(reason)
    artifact, cache = artifact_of(*FORMAT[runtime]), tmp_path / "cache"
    with np.load(artifact / "golden.npz") as golden:
        image = golden["images"][:1]
    words = ("--runtime", runtime, "--options", msgspec.json.encode({"cache": str(cache)}).decode())
    with serving(artifact, *words) as server:
        first = server.infer(image).scores
    filled = files(cache)
    assert filled
    with serving(artifact, *words) as server:
        assert np.array_equal(server.infer(image).scores, first)
    assert files(cache) == filled


def test_cold_starts_are_told_with_and_without_a_cache(artifact_of: Artifacts) -> None:
    if reason := why_not("openvino_cpu"):
        pytest.skip(reason)
    done = check_stage("loadtest.benchmark", "cold", str(artifact_of("pytorch", "onnx")), "--repeats", "1", "--json")
    found = [(one["runtime"], one["cache"]) for one in json.loads(done.stdout)]
    assert found == [("onnx_runtime", ""), ("openvino_cpu", ""), ("openvino_cpu", "filled"), ("openvino_cpu", "read")]
    for one in json.loads(done.stdout):
        assert 0 < one["seconds"]["import_seconds"] < one["seconds"]["ready_seconds"]
        assert one["seconds"]["ready_seconds"] <= one["seconds"]["first_answer_seconds"]


@pytest.mark.parametrize("runtime", [name for name in FORMAT if not why_not(name)])
def test_an_option_that_a_runtime_has_not_is_refused(runtime: str, artifact_of: Artifacts) -> None:
    artifact = artifact_of(*FORMAT[runtime])
    done = run_stage("serve", str(artifact), "--port", "0", "--runtime", runtime, "--options", '{"cash": "x"}')
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"error: the options of {runtime}: Object contains unknown field `cash`"
