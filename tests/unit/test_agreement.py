"""Artifacts of one checkpoint are held to one another on the whole test split."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from made_run import build, prove, study

from loadtest.report import facts
from loadtest.report.sections import certificates
from loadtest.results.agreement import Agreement, agreements
from medserve import store
from medserve.models import Artifact
from medserve.study import Measure

ONE = study(
    sizes=(28,),
    frameworks=("pytorch", "keras_tf"),
    trained_in="pytorch",
    measure=(Measure(profiles=("in-process-1",)),),
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """One checkpoint, and four artifacts of it from two frameworks."""
    folder = build(tmp_path / "made", ONE, lambda *_: 1.0)
    prove(folder)
    return folder


def read(run: Path) -> list[Agreement]:
    return agreements(run, [store.read_json(path, Artifact) for path in sorted(run.glob("artifacts/*/artifact.json"))])


def spoil(run: Path, change: np.float32) -> str:
    """Move one score of an artifact; its name."""
    path = sorted(run.glob("artifacts/*/scores.npy"))[1]
    scores = np.load(path)
    scores[7, 3] += change
    np.save(path, scores)
    return path.parent.name


def test_each_is_held_to_each(run: Path) -> None:
    (one,) = read(run)
    assert len(one.served) == 4
    assert len(one.pairs) == 6
    assert one.holds
    assert all(0 < (proof.max_abs or 0) <= 2e-6 for proof in one.pairs.values())


@pytest.mark.parametrize("change", [np.float32(2e-4), np.float32(np.nan)])
def test_one_that_is_another_function_is_found(run: Path, change: np.float32) -> None:
    odd = spoil(run, change)
    (one,) = read(run)
    assert not one.holds
    assert odd in [name for name, _ in one.widest]
    assert sum(proof.valid for proof in one.pairs.values()) == 3


def test_a_lossy_one_and_one_without_scores_are_not_held_to_the_others(run: Path) -> None:
    first, second, *_ = sorted(run.glob("artifacts/*/artifact.json"))
    store.write_json(first, msgspec.structs.replace(store.read_json(first, Artifact), precision="int8"))
    second.with_name("scores.npy").unlink()
    (one,) = read(run)
    assert len(one.pairs) == 1


def test_each_runtime_that_reads_an_artifact_stands_for_itself(run: Path) -> None:
    path = next(path for path in run.glob("artifacts/*/artifact.json") if path.parent.suffix == ".onnx")
    artifact = store.read_json(path, Artifact)
    further = msgspec.structs.replace(artifact.certificate, runtime="openvino_cpu")
    np.save(path.with_name("scores.openvino_cpu.npy"), np.load(path.with_name("scores.npy")))
    store.write_json(path, msgspec.structs.replace(artifact, further=(further,)))
    (one,) = read(run)
    assert len(one.served) == 5
    assert (artifact.name, "openvino_cpu") in one.served


def test_a_checkpoint_that_keeps_no_labels_has_none(run: Path) -> None:
    next(run.glob("checkpoints/*/test_labels.npy")).unlink()
    assert read(run) == []


def test_the_report_has_a_line_a_checkpoint(run: Path) -> None:
    table = certificates.agreements(facts.read(run))
    assert table is not None
    (line,) = table.lines
    assert [cell.text for cell in line.cells][:4] == ["PyTorch", "28", "0", "4"]
    assert line.cells[-1].text == "yes"
    spoil(run, np.float32(0.01))
    table = certificates.agreements(facts.read(run))
    assert table is not None
    assert table.lines[0].cells[-1].text == "no"
    assert "0.01" in table.lines[0].cells[4].text
