"""A published run that is carried elsewhere: derived again there, and no changed byte goes unseen."""

import random
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from made_run import build, prove, restate, study

from loadtest.report import page
from loadtest.results.agreement import agreements
from loadtest.results.verify import seal, verify
from medserve import store
from medserve.errors import BadInput
from medserve.models import Artifact
from medserve.result import Result
from medserve.study import Measure

MADE = study(sizes=(28,), frameworks=("pytorch",), measure=(Measure(profiles=("in-process-1", "closed-1")),))
NAME = "synthetic-28-cnn-pytorch-s0"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose checkpoint keeps its scores and labels, as the training leaves them, and is published."""
    folder = build(tmp_path_factory.mktemp("run") / "made", MADE, lambda *_: 1.0)
    prove(folder)
    page.write(folder)
    return folder


def test_a_run_is_zipped_unpacked_elsewhere_and_verified_where_nothing_can_be_written(
    run: Path, tmp_path: Path
) -> None:
    archive = shutil.make_archive(str(tmp_path / "carried"), "zip", run)
    there = tmp_path / "another" / "place"
    shutil.unpack_archive(archive, there)
    for path in (there, *there.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = sorted(there.rglob("*"))
    try:
        done = verify(there)
        assert (done.differences, done.underivable) == ([], [])
        # Each manifest carries four scores: the checkpoint, two artifacts, three launches of six cells.
        assert done.numbers > 4 * (1 + 2 + 18)
        assert sorted(there.rglob("*")) == before
    finally:
        for path in (there, *there.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_an_artifact_that_was_exported_again_after_the_measurement_is_found(run: Path, tmp_path: Path) -> None:
    carried = Path(shutil.copytree(run, tmp_path / "carried"))
    folder = carried / "artifacts" / f"{NAME}.onnx"
    (folder / "model.onnx").write_bytes(b"another export")
    artifact = store.read_json(folder / "artifact.json", Artifact)
    files = store.digests(folder, without="artifact.json")
    store.write_json(folder / "artifact.json", msgspec.structs.replace(artifact, files=files))
    seal(carried)
    done = verify(carried)
    assert done.differences
    assert all("measured with another artifact than the one in" in difference for difference in done.differences)


def test_the_sums_are_those_that_sha256sum_checks(run: Path) -> None:
    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum on the path")
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=run, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    listed = {line.split("  ", 1)[1] for line in (run / "SHA256SUMS").read_text().splitlines()}
    assert listed == {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()} - {"SHA256SUMS"}


@pytest.mark.parametrize("everything", [False, pytest.param(True, marks=pytest.mark.full)])
def test_a_byte_that_was_changed_anywhere_is_found_and_its_file_named(
    run: Path, tmp_path: Path, everything: bool
) -> None:
    carried = Path(shutil.copytree(run, tmp_path / "carried"))
    generator = random.Random(0)
    files = sorted(path for path in carried.rglob("*") if path.is_file())
    # One file of each name; or each file once, what is read as JSON or by lines twice more.
    chosen = list({path.name: path for path in files}.values())
    if everything:
        chosen = files + [path for path in files if path.suffix in (".json", "") for _ in range(2)]
    assert len(chosen) > 10
    for path in chosen:
        content = path.read_bytes()
        place = generator.randrange(len(content))
        damaged = bytearray(content)
        damaged[place] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        differences = verify(carried).differences
        assert any(path.name in one for one in differences), (path, place, content[place], damaged[place])
        path.write_bytes(content)
    assert verify(carried).differences == []


def test_a_manifest_that_is_no_text_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_bytes(b'{"study": "\xff"}')
    with pytest.raises(BadInput, match="result.json: not a valid Result"):
        store.read_json(tmp_path / "result.json", Result)


def test_the_command_names_the_file_and_ends_with_1(run: Path, tmp_path: Path) -> None:
    carried = Path(shutil.copytree(run, tmp_path / "carried"))
    path = carried / "study.json"
    path.write_bytes(path.read_bytes().replace(b"{", b"[", 1))
    done = subprocess.run(
        [sys.executable, "-m", "loadtest", "verify", str(carried)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "study.json" in done.stderr


def test_scores_that_the_labels_do_not_give_are_found_wherever_they_stand(run: Path, tmp_path: Path) -> None:
    carried = Path(shutil.copytree(run, tmp_path / "carried"))
    path = carried / "artifacts" / f"{NAME}.onnx" / "artifact.json"
    artifact = store.read_json(path, Artifact)
    boasting = msgspec.structs.replace(artifact.checkpoint.test, accuracy=0.999, auc=1.0)
    store.write_json(
        path,
        msgspec.structs.replace(artifact, checkpoint=msgspec.structs.replace(artifact.checkpoint, test=boasting)),
    )
    seal(carried)  # whoever publishes wrong scores seals them too
    differences = verify(carried).differences
    assert len(differences) == 2
    assert all(str(path) in one for one in differences)
    assert any(
        "accuracy of synthetic-28-cnn-pytorch-s0 is given as 0.999, and derived as 0." in one for one in differences
    )


@pytest.mark.parametrize(("field", "given"), [("max_abs", 1e-9), ("decisions_changed", 1), ("auc", 0.99)])
def test_a_certificate_that_the_scores_do_not_give_is_found(
    run: Path, tmp_path: Path, field: str, given: float
) -> None:
    carried = Path(shutil.copytree(run, tmp_path / "carried"))
    path = carried / "artifacts" / f"{NAME}.onnx" / "artifact.json"
    artifact = store.read_json(path, Artifact)
    proof = msgspec.structs.replace(artifact.certificate, **{field: given})
    store.write_json(path, msgspec.structs.replace(artifact, certificate=proof))
    seal(carried)
    (difference,) = [one for one in verify(carried).differences if str(path) in one]
    assert f"{field} is given as {given}, and derived as " in difference


def test_several_labels_per_image_are_derived_by_their_own_scores(tmp_path: Path) -> None:
    """The 200 labels whose probability is one half are near ties, and no decision about an image is derived of them."""
    made = study(
        datasets=("chestmnist",),
        sizes=(28,),
        frameworks=("pytorch",),
        measure=(Measure(profiles=("in-process-1", "closed-1")),),
    )
    folder = build(tmp_path / "made", made, lambda *_: 1.0)
    prove(folder)
    page.write(folder)
    found = verify(folder)
    assert (found.differences, found.underivable) == ([], [])
    artifact = store.read_json(folder / "artifacts" / "chestmnist-28-cnn-pytorch-s0.onnx" / "artifact.json", Artifact)
    assert artifact.certificate.near_ties == 200
    assert all(
        proof.near_ties == 200 for known in agreements(folder, artifacts_of(folder)) for proof in known.pairs.values()
    )
    rows = msgspec.json.decode((folder / "results.json").read_bytes())
    assert {row["task"] for row in rows if row["framework"]} == {"multi-label"}


def artifacts_of(run: Path) -> list[Artifact]:
    return [store.read_json(path, Artifact) for path in sorted(run.glob("artifacts/*/artifact.json"))]


def test_a_checkpoint_without_labels_is_told_in_one_line_and_is_no_failure(run: Path, tmp_path: Path) -> None:
    carried = Path(shutil.copytree(run, tmp_path / "carried"))
    home = carried / "checkpoints" / NAME
    (home / "test_labels.npy").unlink()
    restate(carried, NAME, files=store.digests(home, without="checkpoint.json"))
    page.write(carried)
    done = subprocess.run(
        [sys.executable, "-m", "loadtest", "verify", str(carried)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    told = [line for line in done.stdout.splitlines() if "not derived" in line]
    assert len(told) == 1
    assert NAME in told[0]


def test_a_manifest_and_the_sums_must_agree(run: Path, tmp_path: Path) -> None:
    carried = Path(shutil.copytree(run, tmp_path / "carried"))
    sums = carried / "SHA256SUMS"
    lines = sums.read_text().splitlines(keepends=True)
    sums.write_text("".join(line for line in lines if "in-process-1/0/samples.parquet" not in line))
    differences = verify(carried).differences
    assert differences
    assert all(
        "samples.parquet has another digest here than in SHA256SUMS, or none there" in one for one in differences
    )
    sums.write_text(f"{'0' * 64}  ../outside\n{sums.read_text()}")
    assert any("lies outside" in one for one in verify(carried).differences)
