"""What every runtime must do, in one process a runtime: two frameworks never share one, and threads are set once.

`test_runtimes.py` runs this file with pytest; RUNTIME, ARTIFACT and THREADS say for what.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from recertify import recertify

from loadtest.measure.tuning import settings
from medserve import machine, plugins, store
from medserve.errors import BadInput, CannotRun
from medserve.jobs import Setting
from medserve.spec import Deployment
from medserve.tables import FORMATS
from serve.runtimes import Runtime, open_runtime, predict

BATCHES = (1, 4, 32)
NAME = os.environ["RUNTIME"]
FOLDER = Path(os.environ["ARTIFACT"])
LITERALS = plugins.literals("serve.runtimes", NAME)
DEPLOYMENT = Deployment(
    artifact=FOLDER.name,
    runtime=NAME,
    device="cuda" if LITERALS.get("DEVICES") == ("cuda",) else "cpu",
    threads=int(os.environ["THREADS"]),
    batch_sizes=BATCHES,
)
# Those of a GPU too: a processor accepts and ignores them.
SETTINGS = list(dict.fromkeys([*settings(NAME, "cpu"), *settings(NAME, "cuda")]))
UNPROFILED = ("null", "delay", "litert")
reads_a_model = pytest.mark.skipif(not LITERALS["READS"], reason="it reads no model")


def test_importing_it_prints_nothing_that_a_program_reads(capfd: pytest.CaptureFixture[str]) -> None:
    """The first test: nothing has imported its framework yet."""
    assert not set(sys.modules) & set(LITERALS["REQUIRES"])
    plugins.load("serve.runtimes", NAME)
    printed, said = capfd.readouterr()
    assert printed == ""
    # The GPU build of ONNX Runtime would otherwise miss a GPU aloud.
    assert said == "" or NAME != "onnx_runtime"


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return open_runtime(FOLDER, DEPLOYMENT)[0]


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (32, 28, 28, 3), np.uint8)


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


def test_facts_are_read_back(runtime: Runtime) -> None:
    facts = runtime.facts()
    assert json.loads(msgspec.json.encode(facts)) == facts
    assert {"runtime", "threads", "device", "versions"} <= set(facts)
    assert facts["runtime"] == NAME


@reads_a_model
def test_it_has_the_threads_that_it_was_given(runtime: Runtime) -> None:
    assert runtime.facts()["threads"] == DEPLOYMENT.threads


def test_a_profiler_names_the_operators_and_leaves_the_runtime_as_it_was(
    runtime: Runtime, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    before, made = predict(runtime, images[:4], BATCHES), []

    def call() -> None:
        made.append(predict(runtime, images[:4], BATCHES))

    if NAME in UNPROFILED:
        with pytest.raises(CannotRun, match=f"{NAME} has no profiler"):
            runtime.profile(call, 3, tmp_path)
        return
    found = runtime.profile(call, 3, tmp_path)
    assert len(made) in (3, 4, 6)
    assert np.array_equal(predict(runtime, images[:4], BATCHES), before)
    assert len({one.name for one in found}) == len(found) > 2
    assert all(one.name and one.kind and one.ms >= 0 and one.calls > 0 for one in found)
    assert 0 < sum(one.ms for one in found) < 1e4


@pytest.mark.skipif("predict" not in LITERALS.get("MISTAKES", ()), reason="its framework has no `predict`")
def test_the_call_that_is_a_timing_mistake_computes_the_same(runtime: Runtime, images: NDArray[np.uint8]) -> None:
    given = runtime.predict(images[:4])  # type: ignore[attr-defined]  # asked above
    assert given == pytest.approx(predict(runtime, images[:4], BATCHES), abs=1e-6)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda one: f"{one.option}={one.value}")
def test_options_that_are_tried_for_speed_compute_the_same(
    runtime: Runtime, images: NDArray[np.uint8], setting: Setting, tmp_path: Path
) -> None:
    given = msgspec.structs.replace(DEPLOYMENT, options={setting.option: setting.value})
    try:
        tuned, _ = open_runtime(FOLDER, given)
    except CannotRun as error:
        # The artifact of the tests is of a small network.
        assert setting.option == "layers"
        pytest.skip(str(error))
    for count in BATCHES:
        assert predict(tuned, images[:count], BATCHES) == pytest.approx(
            predict(runtime, images[:count], BATCHES), abs=1e-5
        )
    kept = predict(tuned, images, BATCHES)
    copy = kept.copy()
    predict(tuned, 255 - images, BATCHES)
    assert np.array_equal(kept, copy)
    if NAME not in UNPROFILED:
        # The profiler may need another session, to which nothing is bound.
        assert tuned.profile(lambda: predict(tuned, images[:1], BATCHES), 2, tmp_path)
        assert predict(tuned, images[:1], BATCHES) == pytest.approx(predict(runtime, images[:1], BATCHES), abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"), [({"heat": "kept"}, "heat"), ({"heap": "warm"}, "warm|takes no options")]
)
def test_options_that_it_does_not_have_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        open_runtime(FOLDER, msgspec.structs.replace(DEPLOYMENT, options=options))


@reads_a_model
def test_a_cold_one_has_not_run_yet() -> None:
    cold, _ = open_runtime(FOLDER, msgspec.structs.replace(DEPLOYMENT, batch_sizes=(1, 4)), cold=True)
    warm, _ = open_runtime(FOLDER, DEPLOYMENT)
    with np.load(FOLDER / "golden.npz") as golden:
        one = golden["images"][:1]
    assert predict(cold, one, (1,)) == pytest.approx(predict(warm, one, BATCHES), abs=1e-6)


@reads_a_model
def test_golden_images_get_the_trainers_scores() -> None:
    runtime, artifact = open_runtime(FOLDER, DEPLOYMENT)
    with np.load(FOLDER / "golden.npz") as golden:
        assert predict(runtime, golden["images"], BATCHES) == pytest.approx(golden["scores"], abs=1e-4)
    assert artifact == store.read_artifact(FOLDER)


def changed(into: Path, file: str, content: bytes) -> Path:
    """A copy of an artifact with another file, that its certificates are about."""
    shutil.copytree(FOLDER, into)
    (into / file).write_bytes(content)
    recertify(into)
    return into


@reads_a_model
def test_another_function_than_the_trainers_is_refused(tmp_path: Path) -> None:
    with np.load(FOLDER / "golden.npz") as golden:
        np.savez(tmp_path / "golden.npz", images=golden["images"], scores=np.roll(golden["scores"], 1, 1))
    wrong = changed(tmp_path / "wrong", "golden.npz", (tmp_path / "golden.npz").read_bytes())
    with pytest.raises(CannotRun, match=rf"{NAME} differs from the trainer by .* on the golden images of wrong"):
        open_runtime(wrong, DEPLOYMENT)


@reads_a_model
def test_a_model_that_cannot_be_read_is_a_reason(tmp_path: Path) -> None:
    path = FORMATS[store.read_artifact(FOLDER).format].path
    broken = changed(tmp_path / "broken", path, b"no model at all")
    with pytest.raises(CannotRun, match=f"{NAME} cannot run broken: "):
        open_runtime(broken, DEPLOYMENT)


@reads_a_model
def test_a_changed_model_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(FOLDER, other)
    path = FORMATS[store.read_artifact(FOLDER).format].path
    (other / path).write_bytes((other / path).read_bytes() + b" ")
    with pytest.raises(BadInput, match="its SHA-256 is not the manifest's"):
        open_runtime(other, DEPLOYMENT)


@reads_a_model
def test_an_artifact_without_golden_images_is_refused(tmp_path: Path) -> None:
    other = changed(tmp_path / "other", "golden.npz", b"")
    (other / "golden.npz").unlink()
    recertify(other)
    with pytest.raises(BadInput, match=r"no golden\.npz"):
        open_runtime(other, DEPLOYMENT)


def test_an_artifact_without_a_valid_certificate_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(FOLDER, other)
    artifact = store.read_artifact(other)
    own, *further = (
        msgspec.structs.replace(one, valid=False, reason="3 decisions changed")
        for one in (artifact.certificate, *artifact.further)
    )
    changed = msgspec.structs.replace(artifact, certificate=own, further=tuple(further))
    store.write_json(other / "artifact.json", changed)
    with pytest.raises(CannotRun, match="has no valid certificate: 3 decisions changed"):
        open_runtime(other, DEPLOYMENT)


@reads_a_model
def test_an_artifact_that_is_certified_for_another_runtime_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(FOLDER, other)
    artifact = store.read_artifact(other)
    certificate = msgspec.structs.replace(artifact.certificate, runtime="another")
    store.write_json(
        other / "artifact.json", msgspec.structs.replace(artifact, certificate=certificate, further=(certificate,))
    )
    with pytest.raises(CannotRun, match=f"is not certified for {NAME}; export it again with --runtime {NAME}"):
        open_runtime(other, DEPLOYMENT)


@reads_a_model
def test_a_device_that_is_not_there_is_a_reason(capfd: pytest.CaptureFixture[str]) -> None:
    """The last test, for what a framework was told of its devices it may keep."""
    if machine.gpus():
        pytest.skip("this machine has a GPU")
    with pytest.raises(CannotRun, match="use --device cpu"):
        open_runtime(FOLDER, msgspec.structs.replace(DEPLOYMENT, device="cuda"))
    assert capfd.readouterr().out == ""
