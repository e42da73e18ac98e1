"""An artifact whose manifest does not cover all that would be loaded is refused in one line, before loading it."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Artifacts, Stage, run_stage
from recertify import recertify
from server_process import serving

from medserve import process, store
from medserve.certificate import check, class_digest
from medserve.errors import EVENTS, BadInput
from medserve.models import Artifact
from medserve.spec import Deployment
from medserve.tables import DATASETS
from serve.runtimes import open_runtime
from train import synthetic
from train.archives import official

MODEL = "1/model.onnx"
Manifest = dict[str, Any]
Forge = Callable[[Path, Manifest], None]


@pytest.fixture
def copy(onnx: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(onnx, tmp_path / "cells"))


def forge(folder: Path, change: Forge) -> None:
    path = folder / store.ARTIFACT
    manifest = json.loads(path.read_bytes())
    change(folder, manifest)
    path.write_text(json.dumps(manifest))


def refusal(folder: Path, **options: Any) -> str:
    """The line by which a folder is refused."""
    with pytest.raises(BadInput) as caught:
        open_runtime(folder, Deployment(artifact=folder.name, runtime="onnx_runtime", **options))
    line = str(caught.value)
    assert "\n" not in line
    return line


def list_nothing(_: Path, manifest: Manifest) -> None:
    manifest["files"] = {}


def leave_out(name: str) -> Forge:
    return lambda _, manifest: manifest["files"].pop(name)


def link_the_model(folder: Path, manifest: Manifest) -> None:
    """The model is a link to a file elsewhere, and not listed."""
    del manifest["files"][MODEL]
    shutil.move(folder / MODEL, folder.with_name("elsewhere.onnx"))
    (folder / MODEL).symlink_to(folder.with_name("elsewhere.onnx"))


def link_inside(folder: Path, manifest: Manifest) -> None:
    """The model is listed and has its digest, through a link to another listed file of the folder."""
    shutil.move(folder / MODEL, folder / "1" / "other.onnx")
    (folder / MODEL).symlink_to("other.onnx")
    manifest["files"]["1/other.onnx"] = manifest["files"][MODEL]


def link_a_folder(folder: Path, _: Manifest) -> None:
    shutil.move(folder / "1", folder.with_name("elsewhere"))
    (folder / "1").symlink_to(folder.with_name("elsewhere"))


def add_weights(folder: Path, _: Manifest) -> None:
    """ONNX Runtime reads weights from files beside the model, if the model says so."""
    (folder / "1" / "weights.bin").write_bytes(b"other weights")


def add_hidden(folder: Path, _: Manifest) -> None:
    (folder / ".hidden").write_bytes(b"")


def exchange(folder: Path, manifest: Manifest) -> None:
    """Another model with the golden file that suits it, each listed with its right digest."""
    (folder / MODEL).write_bytes(b"another model")
    with np.load(folder / "golden.npz") as golden:
        np.savez(folder / "golden.npz", images=golden["images"], scores=np.roll(golden["scores"], 1, 1))
    manifest["files"] = store.digests(folder, without=store.ARTIFACT)


def reverse_classes(_: Path, manifest: Manifest) -> None:
    manifest["checkpoint"]["classes"].reverse()


def other_task(_: Path, manifest: Manifest) -> None:
    """Softmax scores of one label per image, called those of several."""
    manifest["checkpoint"]["task"] = "multi-label"


def other_scores(folder: Path, manifest: Manifest) -> None:
    np.save(folder / "scores.npy", np.load(folder / "scores.npy")[::-1])
    manifest["files"] = store.digests(folder, without=store.ARTIFACT)


def claim(**fields: Any) -> Forge:
    return lambda _, manifest: manifest["certificate"].update(fields)


LOSSY = {"kind": "lossy", "limit_abs": None, "max_abs": 0.99, "accuracy_change": [-0.001, 0.001]}
NOT_ABOUT = "is not about the model, golden file, scores and class names of this manifest; export it again"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (list_nothing, f"its manifest lists no {MODEL}, so that file cannot be verified; export it again"),
        (leave_out(MODEL), f"its manifest lists no {MODEL}, so that file cannot be verified; export it again"),
        (leave_out("golden.npz"), "its manifest lists no golden.npz, so that file cannot be verified; export it"),
        (leave_out("scores.npy"), "scores.npy: not in the manifest of cells; remove it, or export it again"),
        (link_the_model, f"its manifest lists no {MODEL}"),
        (link_inside, f"{MODEL}: a symbolic link; an artifact holds no links, so put the file itself there"),
        (link_a_folder, "1: a symbolic link"),
        (add_weights, "1/weights.bin: not in the manifest of cells; remove it, or export it again"),
        (add_hidden, ".hidden: not in the manifest of cells; remove it, or export it again"),
        (exchange, NOT_ABOUT),
        (other_scores, NOT_ABOUT),
        (claim(subject=""), NOT_ABOUT),
        (claim(subject="0" * 64), NOT_ABOUT),
        (other_task, NOT_ABOUT),
        (reverse_classes, "its class names are not those of synthetic in label order; train and export it again"),
        (claim(**LOSSY), "is of kind lossy, limit None and tie margin 0.0002; float32 has float32, 0.0001 and 0.0002"),
        (claim(limit_abs=1.0, max_abs=0.99), "is of kind float32, limit 1.0 and tie margin 0.0002; float32 has"),
        (claim(tie_margin=0.5), "tie margin 0.5; float32 has"),
        (claim(max_abs=0.99), "calls itself valid with the largest |differences| [0.99]; export it again"),
        (claim(max_abs=-1.0), "calls itself valid with the largest |differences| [-1.0]; export it again"),
        (claim(max_abs=None), "calls itself valid with the largest |differences| [None]; export it again"),
        (claim(decisions_changed=3), "calls itself valid with 3 decisions changed; export it again"),
        (claim(images=0), "is of 0 images; the checkpoint has 1024 test images; export it again"),
    ],
)
def test_a_manifest_that_does_not_cover_everything_is_refused(copy: Path, change: Forge, line: str) -> None:
    forge(copy, change)
    assert line in refusal(copy)


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret", "1/../golden.npz"])
def test_a_name_that_leaves_the_folder_is_refused(copy: Path, name: str) -> None:
    forge(copy, lambda _, manifest: manifest["files"].update({name: "0" * 64}))
    assert f"its manifest names {name!r}, which lies outside; do not use this folder" in refusal(copy)


def test_class_names_of_a_known_data_set_are_in_its_order_even_where_all_digests_agree(copy: Path) -> None:
    forge(copy, reverse_classes)
    recertify(copy)
    assert "its class names are not those of synthetic in label order" in refusal(copy)


@pytest.mark.parametrize("name", DATASETS)
def test_the_known_class_names_are_those_that_training_takes(name: str) -> None:
    classes = tuple(synthetic.CLASSES) if name == "synthetic" else official(name, 28).classes
    assert DATASETS[name].class_digest == class_digest(classes)


def test_a_manifest_without_a_task_is_of_one_label_per_image_and_keeps_its_certificate(copy: Path) -> None:
    def forget(_: Path, manifest: Manifest) -> None:
        assert manifest["checkpoint"].pop("task") == "multi-class"

    forge(copy, forget)
    artifact = store.read_artifact(copy)
    assert artifact.checkpoint.task == "multi-class"
    check(artifact)


def test_class_names_of_another_data_set_are_held_by_the_certificate(copy: Path) -> None:
    forge(copy, lambda _, manifest: manifest["checkpoint"].update(dataset="own"))
    check(recertify(copy))
    forge(copy, reverse_classes)
    assert NOT_ABOUT in refusal(copy)


def test_reduced_precision_has_a_lossy_certificate_that_bounds_the_loss(artifact_of: Artifacts, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(artifact_of("pytorch", "onnx", "int8"), tmp_path / "cells"))
    for fields, line in (
        ({"accuracy_change": [-0.02, 0.01]}, "calls itself valid with a change of accuracy of (-0.02, 0.01)"),
        ({"accuracy_change": None}, "calls itself valid with a change of accuracy of None"),
        ({"kind": "float32", "limit_abs": 1e-4}, "is of kind float32, limit 0.0001 and tie margin 0.0002; int8 has"),
    ):
        kept = (copy / store.ARTIFACT).read_bytes()
        forge(copy, claim(**fields))
        assert line in refusal(copy)
        (copy / store.ARTIFACT).write_bytes(kept)


def test_a_golden_file_without_images_is_refused(copy: Path) -> None:
    with np.load(copy / "golden.npz") as golden:
        np.savez(copy / "golden.npz", images=golden["images"][:0], scores=golden["scores"][:0])
    recertify(copy)
    assert refusal(copy).endswith("golden.npz: uint8 (0, 28, 28, 3), no images for it; export it again")


def test_a_compile_cache_lies_beside_the_artifact(copy: Path) -> None:
    named = str(copy / "1" / ".." / "cache")
    deployment = Deployment(artifact="cells", runtime="openvino_cpu", options={"cache": named})
    with pytest.raises(BadInput, match="the option cache of openvino_cpu is .*, inside the artifact; name"):
        open_runtime(copy, deployment)
    assert not (copy / "cache").exists()


def test_a_checkpoint_lists_what_is_read_of_it(checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / "cells"))
    for name in ("weights.safetensors", "test_scores.npy"):
        manifest = json.loads((checkpoint / "checkpoint.json").read_bytes())
        del manifest["files"][name]
        (copy / "checkpoint.json").write_text(json.dumps(manifest))
        with pytest.raises(BadInput, match=f"its manifest lists no {name}, so that file cannot be verified; train it"):
            store.read_checkpoint(copy)


def digest_of(folder: Path) -> str:
    return hashlib.sha256((folder / store.ARTIFACT).read_bytes()).hexdigest()


def test_a_server_takes_the_manifest_that_was_reviewed_and_says_which_it_serves(onnx: Path, tmp_path: Path) -> None:
    digest = digest_of(onnx)
    with (tmp_path / "log").open("wb") as log, serving(onnx, "--sha256", digest.upper(), stderr=log) as server:
        assert server.ask("GET", "/v2/health/ready").status == 200
    started = json.loads((tmp_path / "log").read_text().splitlines()[0])
    assert (started["event"], started["sha256"]) == ("serving", digest)


@pytest.mark.parametrize("program", ["", "1"])
def test_a_person_and_a_program_read_the_digest_on_standard_output(empty: Path, program: str) -> None:
    words = ["-m", "serve", str(empty), "--runtime", "null", "--port", "0"]
    child = process.start(words, stdout=subprocess.PIPE, env={EVENTS: program})
    try:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(1 if program else 3)]
        if program:
            assert json.loads(lines[0])["sha256"] == digest_of(empty)
        else:
            assert lines[2].decode() == f"{empty / store.ARTIFACT}: SHA-256 {digest_of(empty)}\n"
    finally:
        process.stop(child)
        child.stdout.close()


def test_a_server_refuses_another_manifest_and_shows_its_digest(copy: Path) -> None:
    reviewed = digest_of(copy)
    recertify(copy, name="another")
    done = run_stage("serve", str(copy), "--port", "0", "--sha256", reviewed)
    assert (done.returncode, done.stdout) == (2, "")
    path = copy / store.ARTIFACT
    line = f"error: {path}: its SHA-256 is {digest_of(copy)}, expected {reviewed}; use the file that was reviewed"
    assert done.stderr.splitlines() == [line]


@pytest.mark.parametrize("given", ["", "abc", "g" * 64])
def test_a_digest_is_64_hexadecimal_digits(onnx: Path, given: str) -> None:
    done = run_stage("serve", str(onnx), "--port", "0", "--sha256", given)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip() == (
        f"error: --sha256 is {given!r}; expected the 64 hexadecimal digits that `medserve export` or a server printed"
    )


def test_export_ends_with_the_digest_of_the_manifest(stage: Stage, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "a"
    done = stage("export", str(checkpoint), "--format", "onnx", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == f"{out / store.ARTIFACT}: SHA-256 {digest_of(out)}"
    assert store.read_json(out / store.ARTIFACT, Artifact).golden == "test"
