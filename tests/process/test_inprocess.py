"""In-process timing: every pass is kept, marked, and of the images that it says."""

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from conftest import Stage

from loadtest import samples
from loadtest.measure import inprocess, peaks
from medserve import store
from medserve.jobs import Launch
from medserve.machine import divide_cpus, usable_cpus
from medserve.result import Peaks, Result
from medserve.spec import Cell, Deployment, LoadProfile, Mistake
from medserve.tables import PROFILES
from medserve.timing import now
from serve.runtimes import Runtime

IMAGES = np.random.default_rng(2).integers(0, 256, (24, 8, 8, 3), np.uint8)


class Means(Runtime):
    """A runtime whose scores tell the image: its mean, and the rest."""

    def __init__(self) -> None:
        self.log: list[tuple[str, int]] = []

    def place(self, images: np.ndarray) -> Any:
        self.log.append(("place", len(images)))
        return images

    def run(self, x: Any) -> Any:
        self.log.append(("run", len(x)))
        return x

    def synchronise(self, y: Any) -> None:
        self.log.append(("synchronise", len(y)))

    def fetch(self, y: Any) -> np.ndarray:
        self.log.append(("fetch", len(y)))
        return scores(y)

    def facts(self) -> dict[str, Any]:
        return {}


def scores(images: np.ndarray) -> np.ndarray:
    mean = images.mean((1, 2, 3), dtype=np.float32) / 255
    return np.stack([mean, 1 - mean], 1)


def timed(
    runtime: Means,
    batch: int,
    expected: np.ndarray | None,
    sizes: tuple[int, ...] = (1, 4),
    mistake: Mistake | None = None,
) -> inprocess.Timed:
    deployment = Deployment(artifact="a", runtime="means", batch_sizes=sizes)
    profile = LoadProfile(name="p", mode="in-process", batch=batch, mistake=mistake, seconds=0.05, warmup_seconds=0.02)
    return inprocess.measure(runtime, deployment, profile, IMAGES, expected, seed=4)


@pytest.mark.parametrize("batch", [1, 4])
def test_all_passes_are_kept_and_marked_and_of_the_images_they_name(batch: int) -> None:
    found = timed(Means(), batch, scores(IMAGES))
    table = samples.as_table(found.samples)
    warm = np.asarray(table["warmup"].to_pylist())
    assert 0 < warm.sum() < len(warm)
    assert not warm[int(warm.sum()) :].any()
    sent, done = table["sent_ns"].to_numpy(), table["done_ns"].to_numpy()
    assert (sent < done).all()
    assert (done[:-1] <= sent[1:]).all(), "two calls overlap"
    assert table["wrong"].to_pylist() == [False] * len(table)
    order = np.random.default_rng(4).permutation(24)
    headline = table["image"].to_numpy()[~warm]
    begins = order[: 24 // batch * batch : batch]
    assert np.array_equal(headline, np.resize(begins, len(headline)))
    stages = samples.as_table(found.stages, samples.STAGES)
    assert stages["warmup"].to_pylist()[:2] == [True, False]
    assert len(stages) > 6


def test_scores_that_are_not_expected_are_wrong_and_nothing_expected_is_null() -> None:
    expected = scores(IMAGES)
    expected[5] += 0.01
    table = samples.as_table(timed(Means(), 1, expected).samples)
    wrong = np.asarray(table["wrong"].to_pylist())
    assert np.array_equal(wrong, table["image"].to_numpy() == 5)
    assert wrong.any()
    assert samples.as_table(timed(Means(), 1, None).samples)["wrong"].null_count


def test_the_stages_are_timed_apart_and_in_order_on_padded_batches() -> None:
    runtime = Means()
    timed(runtime, 3, None)
    verbs = [verb for verb, _ in runtime.log]
    begin = verbs.index("synchronise") - 2
    assert "synchronise" not in verbs[:begin], "the headline pass must not stop in between"
    assert verbs[begin:] == ["place", "run", "synchronise", "fetch"] * ((len(verbs) - begin) // 4)
    assert {size for _, size in runtime.log} == {4}


class Lazy(Means):
    """A runtime that computes only when it is waited for, says when, and has the call that is a timing mistake."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[int] = []

    def fetch(self, y: Any) -> np.ndarray:
        self.fetched.append(now())
        return super().fetch(y)

    def predict(self, images: np.ndarray) -> np.ndarray:
        self.log.append(("predict", len(images)))
        return scores(images)


def mistaken(mistake: Mistake) -> tuple[Lazy, pa.Table]:
    runtime = Lazy()
    found = timed(runtime, 1, scores(IMAGES), mistake=mistake)
    assert found.stages == {}
    table = samples.as_table(found.samples)
    assert set(table["wrong"].to_pylist()) == {False}
    return runtime, table


def test_the_clock_of_who_does_not_synchronise_stops_before_the_scores_are_there() -> None:
    for mistake, early in (("unsynchronised", True), ("one-image", False)):
        runtime, table = mistaken(mistake)  # type: ignore[arg-type]  # literals in a tuple
        fetched = np.array(runtime.fetched)
        assert ((table["done_ns"].to_numpy() <= fetched) == early).all()


def test_one_image_is_one_image() -> None:
    _, table = mistaken("one-image")
    assert len(set(table["image"].to_pylist())) == 1
    assert len(table) > 1


def test_who_times_compilation_has_no_warm_up_and_the_first_calls_only() -> None:
    _, table = mistaken("compile-inside")
    assert np.bincount(table["warmup"].to_numpy()).tolist() == [inprocess.COLD_CALLS]


def test_predict_is_the_runtimes_own() -> None:
    runtime, _ = mistaken("predict")
    assert {verb for verb, _ in runtime.log} == {"predict"}


def test_a_pass_is_long_enough_for_a_median_and_short_enough_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inprocess, "MAX_CALLS", 9)
    table = samples.as_table(timed(Means(), 1, None).samples)
    assert np.bincount(table["warmup"].to_numpy()).tolist() == [9, 9]
    profile = LoadProfile(name="p", mode="in-process", seconds=1e-9, warmup_seconds=1e-9)
    deployment = Deployment(artifact="a", runtime="means", batch_sizes=(1,))
    found = inprocess.measure(Means(), deployment, profile, IMAGES, None, seed=0, with_stages=False)
    assert found.stages == {}
    assert np.bincount(found.samples["warmup"]).tolist() == [inprocess.MIN_CALLS, inprocess.WARM_CALLS]


@pytest.mark.parametrize("threads", [1, 0])
def test_a_launch_times_a_real_deployment_in_a_process_of_its_own(
    stage: Stage, onnx: Path, checkpoint: Path, tmp_path: Path, threads: int
) -> None:
    with np.load(onnx / "golden.npz") as golden:
        np.save(tmp_path / "images.npy", golden["images"])
        np.save(tmp_path / "scores.npy", golden["scores"])
    deployment = Deployment(artifact=onnx.name, runtime="onnx_runtime", threads=threads, batch_sizes=(1, 128))
    # The ends of the ladder of batches.
    profiles = [
        msgspec.structs.replace(PROFILES[f"in-process-{batch}"], seconds=0.2, warmup_seconds=0.1, requests=0)
        for batch in (1, 128)
    ]
    launch = Launch(
        study="test",
        index=2,
        cells=tuple(Cell(deployment=deployment, profile=profile) for profile in profiles),
        artifact=str(onnx),
        results=str(tmp_path / "results"),
        images=str(tmp_path / "images.npy"),
        expected=str(tmp_path / "scores.npy"),
        server_cpus=divide_cpus(threads)[0],
        client_cpus=(),
        seed=0,
    )
    store.write_json(tmp_path / "launch.json", launch)
    done = stage("loadtest", "launch", str(tmp_path / "launch.json"))
    assert done.returncode == 0, done.stderr
    for cell in launch.cells:
        folder = tmp_path / "results" / cell.name / "2"
        result = store.read_json(folder / "result.json", Result)
        assert result.status == "done", result.reason
        assert set(result.files) == {"samples.parquet", "stages.parquet"}
        table = samples.read(folder / "samples.parquet")
        assert set(table["wrong"].to_pylist()) == {False}
        assert set(table["batch"].to_pylist()) == {cell.profile.batch}
        stages = samples.read(folder / "stages.parquet", schema=samples.STAGES)
        assert min(stages["run_ns"].to_pylist()) > 0
        assert tuple(result.process["timer"]["affinity"]) == launch.server_cpus
        (window,) = result.windows
        sent, done = table["sent_ns"].to_numpy(), table["done_ns"].to_numpy()
        assert window.start_ns < sent.min() < done.max() < window.end_ns
        assert set(result.process["steady"]) == {"start", "steady", "reason", "rises"}
        assert result.process["timer"]["runtime"]["threads"] == (threads or len(usable_cpus()))


def test_images_of_another_size_than_the_artifacts_are_refused(
    stage: Stage, onnx: Path, checkpoint: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "images.npy", np.zeros((4, 64, 64, 3), np.uint8))
    profile = LoadProfile(name="p", mode="in-process", seconds=0.1, warmup_seconds=0.1)
    cell = Cell(deployment=Deployment(artifact=onnx.name, runtime="onnx_runtime"), profile=profile)
    launch = Launch(
        study="test",
        index=0,
        cells=(cell,),
        artifact=str(onnx),
        results=str(tmp_path / "results"),
        images=str(tmp_path / "images.npy"),
        expected=None,
        server_cpus=(),
        client_cpus=(),
        seed=0,
    )
    store.write_json(tmp_path / "launch.json", launch)
    done = stage("loadtest", "launch", str(tmp_path / "launch.json"))
    assert done.returncode == 1
    assert "takes (28, 28, 3)" in done.stderr
    result = store.read_json(tmp_path / "results" / cell.name / "0" / "result.json", Result)
    assert result.status == "failed"


def test_time_by_hand_is_calm_and_also_json(stage: Stage, onnx: Path) -> None:
    words = ["loadtest", "time", str(onnx), "--seconds", "0.2", "--warmup", "0.1"]
    calm, said = stage(*words), stage(*words, "--batch", "4", "--json")
    assert calm.returncode == 0, calm.stderr
    assert "p50 " in calm.stdout
    assert "run " in calm.stdout
    figures = json.loads(said.stdout)
    assert figures["batch"] == 4
    assert figures["wrong"] == 0
    assert figures["p50_ms"] > 0
    assert set(figures["stages_ms"]) == {"place", "run", "fetch"}
    everything = stage(*words, "--threads", "0", "--json")
    assert json.loads(everything.stdout)["deployment"].endswith("-tall"), everything.stderr
    assert stage(*words, "--options", '{"arena": "off"}').returncode == 0
    unknown = stage(*words, "--options", '{"arena": "small"}')
    assert unknown.returncode == 2
    assert "arena" in unknown.stderr
    assert stage(*words, "--options", "arena=off").stderr.startswith("error: --options is no JSON object: ")
    refused = stage("loadtest", "time", str(onnx), "--runtime", "nonesuch")
    assert refused.returncode == 2
    assert "there is: " in refused.stderr


def test_the_peaks_of_the_machine_are_those_of_its_cores(stage: Stage, tmp_path: Path) -> None:
    done = stage("loadtest", "peaks", "--out", str(tmp_path / "peaks.json"))
    assert done.returncode == 0, done.stderr
    assert "GFLOP/s in float32" in done.stdout
    found = store.read_json(tmp_path / "peaks.json", Peaks)
    assert found.threads == len(found.cpus) == 1
    assert 1e9 < found.flops < 1e13
    assert min(found.bandwidth) == 2**18
    assert all(1e8 < speed < 1e13 for speed in found.bandwidth.values())


def test_the_second_library_of_the_peaks_multiplies_the_same_matrices() -> None:
    first, second = np.random.default_rng(0).random((2, 64, 64), np.float32)
    (found,) = peaks._product_by_onnx_runtime(first, second, 1)()
    np.testing.assert_allclose(found, first @ second, rtol=1e-5)


def test_operators_of_several_deployments_are_named_by_their_own_profilers(
    stage: Stage, onnx: Path, torchscript: Path
) -> None:
    words = ("loadtest", "explain", str(onnx), str(torchscript))
    done = stage(*words, "--top", "2")
    assert done.returncode == 0, done.stderr
    assert " Conv " in done.stdout
    assert "aten::" in done.stdout
    found = json.loads(stage(*words, "--json").stdout)["explained"]
    assert [one["deployment"].split(".")[-2] for one in found] == ["onnx_runtime", "torchscript"]
    assert len({one["checkpoint"] for one in found}) == 1
    for one in found:
        times = [operator["ms"] for operator in one["operators"]]
        assert times == sorted(times, reverse=True)
        assert min(sum(times), one["plain_ms"], one["profiled_ms"]) > 0
    # The profiler does not see the convolutions of an optimised module; oneDNN tells them.
    optimised = stage("loadtest", "explain", str(torchscript), "--json", "--options", '{"graph": "optimised"}')
    operators = json.loads(optimised.stdout)["explained"][0]["operators"]
    assert sum(operator["calls"] for operator in operators if operator["kind"] == "convolution") >= 6
    assert "forward" not in {operator["kind"] for operator in operators}
    refused = stage(*words, "--runtime", "litert")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "none of the runtimes litert reads onnx" in refused.stderr
