"""What every runtime must do, run over every file in serve/runtimes.

A new runtime is found by its file. Its format must have an artifact: a fixture of the format's name in conftest.py.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from medserve import machine, plugins, store
from medserve.errors import BadInput, CannotRun
from medserve.spec import Artifact, Deployment
from medserve.tables import FORMATS
from serve.benchmark import empty_artifact
from serve.runtimes import Runtime, open_runtime, predict

NAMES = plugins.names("serve.runtimes")
READERS = [(name, form) for name in NAMES for form in plugins.literals("serve.runtimes", name)["READS"]]
CASES = [*READERS, ("null", "no model")]
BATCHES = (1, 4, 32)


def needed(name: str) -> None:
    if absent := plugins.missing("serve.runtimes", name):
        pytest.skip(f"{name} needs {', '.join(absent)}, which is not installed")


def deployment(name: str, folder: Path, threads: int = 1) -> Deployment:
    return Deployment(artifact=folder.name, runtime=name, threads=threads, batch_sizes=BATCHES)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return empty_artifact(tmp_path_factory.mktemp("empty"), 28)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def case(request: pytest.FixtureRequest) -> tuple[str, Path]:
    """A runtime's name and an artifact that it reads."""
    name, form = request.param
    needed(name)
    return name, request.getfixturevalue("empty" if name == "null" else form)


@pytest.fixture(scope="module", params=READERS, ids=lambda case: f"{case[0]}-{case[1]}")
def reader(request: pytest.FixtureRequest) -> tuple[str, Path]:
    """The same, without the runtime that reads nothing."""
    name, form = request.param
    needed(name)
    return name, request.getfixturevalue(form)


@pytest.fixture(scope="module")
def runtime(case: tuple[str, Path]) -> Runtime:
    name, folder = case
    return open_runtime(folder, deployment(name, folder))[0]


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (32, 28, 28, 3), np.uint8)


@pytest.mark.parametrize("name", NAMES)
def test_a_runtime_says_what_it_needs_and_reads(name: str) -> None:
    literals = plugins.literals("serve.runtimes", name)
    assert "REQUIRES" in literals
    assert set(literals["READS"]) <= set(FORMATS)


@pytest.mark.parametrize("name", NAMES)
def test_importing_a_runtime_prints_nothing(name: str) -> None:
    """Not even the GPU build of a library on a machine without a GPU: what a stage prints is read by programs."""
    needed(name)
    code = f"from medserve import plugins; plugins.load('serve.runtimes', {name!r})"
    env = {**os.environ, **machine.thread_environment(1)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("count", BATCHES)
def test_scores_are_probabilities(runtime: Runtime, images: NDArray[np.uint8], count: int) -> None:
    scores = predict(runtime, images[:count], BATCHES)
    assert scores.shape == (count, 8)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()
    assert scores.min() >= 0
    assert scores.sum(1) == pytest.approx(1, abs=1e-5)


def test_the_four_verbs_are_one_prediction(runtime: Runtime, images: NDArray[np.uint8]) -> None:
    y = runtime.run(runtime.place(images))
    runtime.synchronise(y)
    assert np.array_equal(runtime.fetch(y), predict(runtime, images, BATCHES))


def test_a_batch_is_its_images(runtime: Runtime, images: NDArray[np.uint8]) -> None:
    singles = np.concatenate([predict(runtime, images[at : at + 1], BATCHES) for at in range(32)])
    assert predict(runtime, images, BATCHES) == pytest.approx(singles, abs=1e-5)


@pytest.mark.parametrize("count", [2, 3, 5, 31])
def test_padding_changes_nothing(runtime: Runtime, images: NDArray[np.uint8], count: int) -> None:
    whole = predict(runtime, images, BATCHES)
    padded = predict(runtime, images[:count], BATCHES)
    assert padded.shape == (count, 8)
    assert padded == pytest.approx(whole[:count], abs=1e-5)


def test_a_batch_above_the_largest_is_refused(runtime: Runtime) -> None:
    with pytest.raises(BadInput, match="a batch of 33 images; this deployment takes at most 32"):
        predict(runtime, np.zeros((33, 28, 28, 3), np.uint8), BATCHES)


def test_a_request_is_read_in_place_and_left_as_it_was(runtime: Runtime, images: NDArray[np.uint8]) -> None:
    content = b"head" + images.tobytes()
    view = np.frombuffer(memoryview(content)[4:], np.uint8).reshape(images.shape)
    assert np.array_equal(predict(runtime, view, BATCHES), predict(runtime, images, BATCHES))
    assert content[4:] == images.tobytes()


def test_scores_outlive_the_next_prediction(runtime: Runtime, images: NDArray[np.uint8]) -> None:
    scores = predict(runtime, images, BATCHES)
    kept = scores.copy()
    predict(runtime, 255 - images, BATCHES)
    assert np.array_equal(scores, kept)


def test_facts_are_read_back(case: tuple[str, Path], runtime: Runtime) -> None:
    facts = runtime.facts()
    assert json.loads(msgspec.json.encode(facts)) == facts
    assert {"runtime", "threads", "device", "versions"} <= set(facts)
    assert facts["runtime"] == case[0]


@pytest.mark.parametrize("threads", [2, 1])
def test_a_runtime_has_the_threads_that_it_was_given(reader: tuple[str, Path], threads: int) -> None:
    name, folder = reader
    runtime, _ = open_runtime(folder, deployment(name, folder, threads))
    assert runtime.facts()["threads"] == threads


def test_golden_images_get_the_trainers_scores(reader: tuple[str, Path]) -> None:
    name, folder = reader
    runtime, artifact = open_runtime(folder, deployment(name, folder))
    with np.load(folder / "golden.npz") as golden:
        assert predict(runtime, golden["images"], BATCHES) == pytest.approx(golden["scores"], abs=1e-4)
    assert artifact == store.read_artifact(folder)


def changed(folder: Path, into: Path, file: str, content: bytes) -> Path:
    """A copy of an artifact with another file under a right digest."""
    shutil.copytree(folder, into)
    (into / file).write_bytes(content)
    artifact = store.read_json(into / "artifact.json", Artifact)
    files = artifact.files | {file: store.sha256(into / file)}
    store.write_json(into / "artifact.json", msgspec.structs.replace(artifact, files=files))
    return into


def test_another_function_than_the_trainers_is_refused(reader: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = reader
    with np.load(folder / "golden.npz") as golden:
        np.savez(tmp_path / "golden.npz", images=golden["images"], scores=np.roll(golden["scores"], 1, 1))
    wrong = changed(folder, tmp_path / "wrong", "golden.npz", (tmp_path / "golden.npz").read_bytes())
    with pytest.raises(CannotRun, match=rf"{name} differs from the trainer by .* on the golden images of wrong"):
        open_runtime(wrong, deployment(name, wrong))


def test_a_model_that_cannot_be_read_is_a_reason(reader: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = reader
    path = FORMATS[store.read_artifact(folder).format].path
    broken = changed(folder, tmp_path / "broken", path, b"no model at all")
    with pytest.raises(CannotRun, match=f"{name} cannot run broken: "):
        open_runtime(broken, deployment(name, broken))


def test_a_changed_model_is_refused(reader: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = reader
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    path = FORMATS[store.read_artifact(folder).format].path
    (other / path).write_bytes((other / path).read_bytes() + b" ")
    with pytest.raises(BadInput, match="its SHA-256 is not the manifest's"):
        open_runtime(other, deployment(name, other))


def test_an_artifact_without_golden_images_is_refused(reader: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = reader
    other = changed(folder, tmp_path / "other", "golden.npz", b"")
    artifact = store.read_json(other / "artifact.json", Artifact)
    files = {file: digest for file, digest in artifact.files.items() if file != "golden.npz"}
    store.write_json(other / "artifact.json", msgspec.structs.replace(artifact, files=files))
    (other / "golden.npz").unlink()
    with pytest.raises(BadInput, match=r"no golden\.npz"):
        open_runtime(other, deployment(name, other))


def test_an_artifact_without_a_valid_certificate_is_refused(case: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = case
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    artifact = store.read_artifact(other)
    certificate = msgspec.structs.replace(artifact.certificate, valid=False, reason="3 decisions changed")
    store.write_json(other / "artifact.json", msgspec.structs.replace(artifact, certificate=certificate))
    with pytest.raises(CannotRun, match="has no valid certificate: 3 decisions changed"):
        open_runtime(other, deployment(name, other))


@pytest.mark.parametrize("name", sorted({name for name, _ in READERS}))
def test_a_format_that_it_does_not_read_is_refused(name: str, empty: Path, tmp_path: Path) -> None:
    needed(name)
    reads = plugins.literals("serve.runtimes", name)["READS"]
    other = next(form for form in FORMATS if form not in reads)
    artifact = store.read_artifact(empty)
    store.write_json(tmp_path / "artifact.json", msgspec.structs.replace(artifact, format=other))
    with pytest.raises(BadInput, match=rf"{name} reads {', '.join(reads)}; the artifact .* is {other}"):
        open_runtime(tmp_path, deployment(name, tmp_path))


@pytest.mark.parametrize("name", ["torchscript", "onnx_runtime"])
def test_a_device_that_is_not_there_is_a_reason(
    name: str, request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]
) -> None:
    needed(name)
    if machine.fingerprint()["gpus"]:
        pytest.skip("this machine has a GPU")
    folder: Path = request.getfixturevalue(plugins.literals("serve.runtimes", name)["READS"][0])
    on_cuda = msgspec.structs.replace(deployment(name, folder), device="cuda")
    with pytest.raises(CannotRun, match="use --device cpu"):
        open_runtime(folder, on_cuda)
    assert capfd.readouterr().out == ""
