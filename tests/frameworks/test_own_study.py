"""A network of one's own images: trained, exported with a certificate, measured, and verified on any machine."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Stage
from mini_study import tried
from PIL import Image
from server_process import serving

from medserve import image_files, store

SIZE = 16
WINDOW = (0.0, 4095.0)
STUDY = """
name = "own"
title = "Own"
datasets = ["{scans}"]
sizes = [16]
architectures = ["cnn"]
frameworks = ["pytorch"]
formats = ["onnx"]
window = [0, 4095]
launches = 2
[recipe]
epochs = 1
batch = 16
[[measure]]
profiles = ["in-process-1", "closed-1"]
seconds = 0.2
warmup_seconds = 0.1
requests = 0
"""


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey images of 16 bits, of three shades."""
    folder, rng = tmp_path_factory.mktemp("own") / "my scans", np.random.default_rng(0)
    for shade, name in enumerate(("dark", "middle", "light")):
        (folder / name).mkdir(parents=True)
        for index in range(20):
            values = rng.normal(600 + 1200 * shade, 100, (SIZE, SIZE)).clip(0, 4095).astype(np.uint16)
            Image.fromarray(values).save(folder / name / f"{index}.png")
    return folder


def test_a_network_of_ones_own_images_is_exported_with_a_certificate(
    stage: Stage, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--dataset", str(scans), "--window", "0:4095", "--set", "epochs=1", "--set", "batch=16")
    done = stage("train", "run", *words, "--out", str(tmp_path / "made"))
    assert done.returncode == 0, done.stderr
    checkpoint = store.read_checkpoint(tmp_path / "made")
    assert (checkpoint.dataset, checkpoint.size, checkpoint.channels) == ("my_scans", SIZE, 1)
    assert checkpoint.unpacked.startswith("my_scans-")
    assert (checkpoint.classes, checkpoint.window) == (("dark", "light", "middle"), WINDOW)
    assert (checkpoint.licence, checkpoint.unofficial, checkpoint.test.images) == ("", False, 12)
    # The images need not be there any more, nor be read from the same folder.
    kept = scans.rename(scans.with_name("moved"))
    exported = stage("export", str(tmp_path / "made"), "--format", "onnx", "--out", str(tmp_path / "made.onnx"))
    kept.rename(scans)
    assert exported.returncode == 0, exported.stderr
    artifact = store.read_artifact(tmp_path / "made.onnx")
    assert artifact.checkpoint == checkpoint
    assert artifact.certificate.valid
    assert artifact.image_shape == (SIZE, SIZE, 1)
    # A posted file is read as the images of the training were.
    with serving(tmp_path / "made.onnx") as server:
        file = scans / "dark" / "0.png"
        answer = server.ask("POST", f"/v2/models/{server.model}/classify", file.read_bytes())
        scores = server.infer(image_files.read(file, WINDOW)[None]).scores[0]
        by_class = {one["name"]: one["probability"] for one in answer.json["classes"]}
        assert [by_class[name] for name in checkpoint.classes] == pytest.approx(scores.tolist(), abs=1e-6)
    monkeypatch.setenv("MEDMNIST_ROOT", str(tmp_path / "elsewhere"))
    refused = stage("export", str(tmp_path / "made"), "--format", "onnx", "--out", str(tmp_path / "other"))
    assert refused.returncode == 2
    assert "not unpacked on this machine" in refused.stderr.splitlines()[-1]


@pytest.mark.full
def test_a_study_of_ones_own_images_is_measured_reported_and_verified_without_them(
    stage: Stage, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.toml").write_text(STUDY.format(scans=scans))
    run = tmp_path / "run"
    # Whether a self-test holds is the machine's affair.
    tried(run, roofline={SIZE: 9000.0})
    done = stage("medserve.cli", "run", str(tmp_path / "own.toml"), "--out", str(run), "--json")
    assert done.returncode == 0, done.stderr
    # What follows has neither the images nor the arrays.
    monkeypatch.setenv("MEDMNIST_ROOT", str(tmp_path / "elsewhere"))
    hidden = scans.rename(scans.with_name("hidden"))
    try:
        assert stage("loadtest", "report", str(run)).returncode == 0
        rows = json.loads(stage("loadtest", "results", str(run), "--format", "json").stdout)
        assert {(row["status"], row["dataset"]) for row in rows} == {("done", "my_scans")}
        assert "window of grey values: 0 to 4095" in (run / "report.md").read_text()
        bundled = stage("loadtest", "bundle", str(run), "--out", str(tmp_path / "own.zip"))
        assert bundled.returncode == 0, bundled.stderr
        assert "my_scans (own)" in bundled.stdout
        verified = stage("loadtest", "verify", str(tmp_path / "own.zip"))
        assert verified.returncode == 0, verified.stdout + verified.stderr
        assert "0 differ" in verified.stdout
    finally:
        hidden.rename(scans)
