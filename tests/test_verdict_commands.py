"""`medserve compare` and `medserve verify` on runs whose truth is known."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_run import build, study

from loadtest import samples
from loadtest.report import page
from loadtest.results import regression, table
from loadtest.results.verify import verify
from medserve import store
from medserve.errors import BadInput
from medserve.result import Result
from medserve.spec import Cell
from medserve.study import Deployed, Measure

MADE = study(sizes=(28,), frameworks=("pytorch", "keras_tf"), measure=(Measure(profiles=("in-process-1", "closed-1")),))


def latency(deployed: Deployed, cell: Cell, index: int) -> float:
    """ONNX takes half the time; launches differ by drift that all share, and by a thousandth."""
    value = 0.2 if deployed.deployment.runtime == "null" else 1.0 if deployed.export.format == "onnx" else 2.0
    place = len(deployed.deployment.name + cell.profile.name) % 3
    return value * (1.0, 1.3, 1.1)[index] * (1 + 0.001 * ((index + place) % 3))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build(tmp_path_factory.mktemp("run") / "made", MADE, latency)
    page.write(folder)
    return folder


def medserve(*words: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "loadtest", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_run_is_compared_pair_by_pair(run: Path) -> None:
    said = medserve("compare", run, "--format", "json")
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout)
    native = [one for one in found if one["kind"] == "native against ONNX"]
    assert len(native) == 4
    assert {one["verdict"] for one in native} == {"faster"}
    for one in native:
        assert one["value"] == pytest.approx(0.5, rel=0.01)
        assert one["low"] < one["value"] < one["high"]
    others = [one for one in found if one["kind"] != "native against ONNX"]
    assert {one["verdict"] for one in others} == {"equivalent"}
    text = medserve("compare", run).stdout
    assert "native against ONNX, closed-1: p50 of the second over the first" in text
    assert "28  pytorch torchscript" in text, "which two are compared must be readable on a narrow terminal"
    assert medserve("compare", run, "--percentile", "99", "--format", "csv").stdout.count("\n") == len(found) + 1


def test_two_runs_show_what_became_slower(run: Path, tmp_path: Path) -> None:
    def slower(deployed: Deployed, cell: Cell, index: int) -> float:
        return latency(deployed, cell, index) * (3.0 if deployed.deployment.runtime == "torchscript" else 1.0)

    new = build(tmp_path / "new", MADE, slower)
    changed = {one.cell: one.verdict for one in regression.changes(table.read(run), table.read(new), 0.5)}
    assert {verdict for cell, verdict in changed.items() if ".torchscript.cpu" in cell} == {"slower"}
    assert "slower" not in {verdict for cell, verdict in changed.items() if ".torchscript.cpu" not in cell}
    said = medserve("compare", run, new)
    assert said.returncode == 1
    assert said.stderr.count("\n") == 1
    assert "slower than in" in said.stderr
    assert medserve("compare", new, run).returncode == 0


def change_results(run: Path, **fields: object) -> None:
    import msgspec

    for path in run.glob("results/*/*/result.json"):
        store.write_json(path, msgspec.structs.replace(store.read_json(path, Result), **fields))


def test_runs_that_are_not_comparable_are_refused_by_the_first_thing_that_differs(run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    change_results(other, machine={**table.read(run).cells[0].machine, "cpu": "Another processor"})
    with pytest.raises(BadInput, match="not comparable: cpu is A processor in the old and Another processor"):
        regression.changes(table.read(run), table.read(other), 0.5)
    longer = study(
        sizes=(28,), frameworks=("pytorch",), measure=(Measure(profiles=("in-process-1", "closed-1"), seconds=9.0),)
    )
    with pytest.raises(BadInput, match="seconds of in-process-1 is"):
        regression.changes(table.read(run), table.read(build(tmp_path / "longer", longer, latency)), 0.5)
    small = study(sizes=(64,), frameworks=("pytorch",))
    with pytest.raises(BadInput, match="no measured cell in common"):
        regression.changes(table.read(run), table.read(build(tmp_path / "small", small, latency)), 0.5)


def test_what_was_published_is_derived_again_wherever_the_folder_is(run: Path, tmp_path: Path) -> None:
    carried = Path(shutil.copytree(run, tmp_path / "elsewhere"))
    done = verify(carried)
    assert done.differences == []
    assert done.numbers > 400
    assert done.files > 30
    said = medserve("verify", carried)
    assert said.returncode == 0
    assert "0 differ" in said.stdout


def test_a_number_that_was_changed_is_found(run: Path, tmp_path: Path) -> None:
    carried = Path(shutil.copytree(run, tmp_path / "elsewhere"))
    rows = json.loads((carried / "results.json").read_text())
    rows[0]["p50_ms"] *= 1.001
    (carried / "results.json").write_text(json.dumps(rows[:-1]))
    differences = verify(carried).differences
    assert len(differences) == 3
    assert any("SHA256SUMS" in one and "results.json: its SHA-256" in one for one in differences)
    assert any("p50_ms is published as" in one for one in differences)
    assert any("in the run, but not published" in one for one in differences)
    assert medserve("verify", carried).returncode == 1


def test_a_sample_that_was_changed_is_found(run: Path, tmp_path: Path) -> None:
    carried = Path(shutil.copytree(run, tmp_path / "elsewhere"))
    path = next(carried.glob("results/*/0/samples.parquet"))
    record = samples.read(path)
    done = np.array(record["done_ns"].to_numpy())
    done[0] += 1
    samples.write(path, {name: record[name] for name in record.column_names} | {"done_ns": done})
    assert any("SHA-256" in one for one in verify(carried).differences)


def test_a_run_of_which_nothing_was_published_is_refused(run: Path, tmp_path: Path) -> None:
    carried = Path(shutil.copytree(run, tmp_path / "elsewhere"))
    (carried / "SHA256SUMS").unlink()
    with pytest.raises(BadInput, match="SHA256SUMS: no such file: nothing was published"):
        verify(carried)
    (carried / "results.json").unlink()
    said = medserve("verify", carried)
    assert said.returncode == 2
    assert said.stderr.count("\n") == 1
    assert "nothing was published" in said.stderr
    assert medserve("verify", tmp_path).returncode == 2
