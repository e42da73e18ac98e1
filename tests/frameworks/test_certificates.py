"""One artifact, several runtimes that read it: each has a certificate of its own, or the reason why not."""

from pathlib import Path

import pytest
from conftest import Artifacts, Stage, readers

from medserve import plugins, store
from medserve.tables import FORMATS

READERS = [(form, name) for form in FORMATS for name in readers(form) if name != FORMATS[form].runtime]
FRAMEWORKS = {
    form: framework
    for framework in plugins.names("export.frameworks")
    for form in plugins.literals("export.frameworks", framework)["WRITES"]
}


@pytest.mark.parametrize(("form", "runtime"), READERS)
def test_a_further_runtime_is_certified_on_the_whole_test_split(
    form: str, runtime: str, artifact_of: Artifacts
) -> None:
    artifact = store.read_artifact(artifact_of(FRAMEWORKS[form], form))
    proof = artifact.certificate_of(runtime)
    assert proof is not None
    assert proof in artifact.further
    assert (proof.valid, proof.images, proof.kind) == (True, 1024, "float32")
    assert proof.max_abs is not None
    assert proof.max_abs <= 1e-4


def test_a_runtime_that_does_not_read_the_format_is_refused(stage: Stage, checkpoint: Path, tmp_path: Path) -> None:
    for runtime, reads in (("stablehlo", "stablehlo"), ("null", "no model")):
        words = ["--format", "onnx", "--runtime", runtime, "--out", str(tmp_path / "a")]
        done = stage("export", str(checkpoint), *words)
        assert done.returncode == 2
        assert done.stderr.strip() == f"error: --runtime {runtime} reads {reads}, not onnx"


def test_a_runtime_that_cannot_run_spoils_no_other(stage: Stage, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "shelf" / "openvino").mkdir(parents=True)
    (tmp_path / "shelf" / "openvino" / "__init__.py").write_text("raise ImportError('libodd.so is missing')\n")
    words = ["--format", "onnx", "--runtime", "openvino_cpu", "--out", str(tmp_path / "a")]
    done = stage("export", str(checkpoint), *words, PYTHONPATH=str(tmp_path / "shelf"))
    assert done.returncode == 0, done.stderr
    artifact = store.read_artifact(tmp_path / "a")
    proof = artifact.certificate_of("openvino_cpu")
    assert artifact.certificate.valid
    assert proof is not None
    assert not proof.valid
    assert proof.reason == "openvino_cpu cannot be imported: libodd.so is missing"
    assert "by openvino_cpu" in done.stderr
    assert "NOT valid: openvino_cpu cannot be imported" in done.stderr
