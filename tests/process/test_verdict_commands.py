"""`medserve compare` and `medserve verify` on runs whose truth is known."""

import json
import math
import shutil
import subprocess
import sys
import zlib
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from made_run import FRAMEWORKS, build, study
from msgspec.structs import replace

from loadtest import samples
from loadtest.report import facts, page
from loadtest.report.sections import answer, choose, formats
from loadtest.results import pairs, table
from loadtest.results.claims import judge
from loadtest.results.verify import verify
from medserve import store
from medserve.errors import BadInput
from medserve.numbers import TIMES
from medserve.result import Result
from medserve.spec import Cell
from medserve.study import Claim, Deployed, Measure, Subject

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
    keys = ["kind", "dataset", "size", "profile", "mode", "percentile", "first", "second"]
    keys += ["value", "low", "high", "level", "verdict", "launches", "more", "reason"]
    assert list(found[0]) == [*keys, "second_size", "second_profile", "accuracy", "second_accuracy"]
    of_frameworks = json.loads(medserve("compare", run, "--by", "framework", "--format", "json").stdout)
    assert {one["kind"] for one in of_frameworks} == {"framework against framework", "ONNX against ONNX"}
    assert "--by compares the deployments of one run" in medserve("compare", run, run, "--by", "size").stderr
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
    assert "28  PyTorch TorchScript" in text, "which two are compared must be readable on a narrow terminal"
    assert medserve("compare", run, "--percentile", "99", "--format", "csv").stdout.count("\n") == len(found) + 1


def test_compare_the_report_and_the_claims_name_the_same_verdicts(tmp_path: Path) -> None:
    """On a run with clear, equivalent and noisy pairs, and a deployment whose certificate is not valid."""

    def noisy(deployed: Deployed, cell: Cell, index: int) -> float:
        factor = {"pytorch": 1.0, "keras_tf": 1.02, "flax_nnx": 1.6}[deployed.export.framework]
        noise = 0.002 if cell.profile.name == "closed-1" else 0.1
        drawn = np.random.default_rng([zlib.crc32(cell.name.encode()), index])
        return factor * latency(deployed, cell, index % 3) * float(np.exp(drawn.normal(0, noise)))

    subjects = [Subject(framework=name, format=form) for name in FRAMEWORKS for form in ("native", "onnx")]
    asked = [
        Claim(who="A study", what="It is so", where="abstract", test="faster", first=first, second=second)
        for first, second in permutations(subjects, 2)
    ]
    measure = (Measure(profiles=("in-process-1", "closed-1")),)
    made = study(sizes=(28,), measure=measure, launches=5, claims=tuple(asked))
    folder = build(tmp_path / "made", made, noisy)
    for path in folder.glob("results/*stablehlo*/*/result.json"):
        result = store.read_json(path, Result)
        assert result.artifact is not None
        proof = replace(result.artifact.certificate, valid=False, reason="it computes something else")
        artifact = replace(result.artifact, certificate=proof)
        store.write_json(path, replace(result, artifact=artifact))
        store.write_json(folder / "artifacts" / artifact.name / "artifact.json", artifact)

    found = facts.read(folder)
    said = json.loads(medserve("compare", folder, "--format", "json").stdout)
    assert {one["verdict"] for one in said} == {"faster", "slower", "equivalent", "undecided", "not comparable"}
    opposite = {"faster": "slower", "slower": "faster"}
    verdicts = {(one["profile"], one["first"], one["second"]): one["verdict"] for one in said}
    verdicts |= {(at, second, first): opposite.get(word, word) for (at, first, second), word in verdicts.items()}
    invalid = {row.deployment for row in found.rows if row.framework and not row.valid}
    assert len(invalid) == 1
    for (_, first, second), verdict in verdicts.items():
        assert (verdict == "not comparable") == bool({first, second} & invalid)

    table_of_formats = formats.table(found)
    assert table_of_formats is not None
    ratios = [cell.hint for line in table_of_formats.lines for cell in line.cells if TIMES in cell.text]
    assert sorted(ratios) == sorted(
        one["verdict"] for one in said if one["kind"] == "native against ONNX" and one["verdict"] != "not comparable"
    )

    by_subject = {(row.framework, "onnx" if row.format == "onnx" else "native"): row.deployment for row in found.rows}
    compared = 0
    for entry in judge(asked, found.rows, found.comparisons, lambda *_: None, {}, {}, 1024):
        first, second = (by_subject[one.framework, one.format] for one in (entry.claim.first, entry.claim.second))
        if {first, second} & invalid:
            assert entry.finding == "not testable here"
        elif verdict := verdicts.get((entry.profile, first, second)):
            compared += 1
            assert entry.verdict == verdict
            assert entry.finding == {"slower": "holds", "undecided": "undecided"}.get(verdict, "does not hold")
    assert compared == sum(verdict != "not comparable" for verdict in verdicts.values())

    for profile in ("in-process-1", "closed-1"):
        fastest = answer.fastest([row for row in found.rows if row.profile == profile], found.comparisons)
        assert fastest is not None
        rivals = {row.deployment for row in fastest.rivals}
        for (where, first, second), verdict in verdicts.items():
            if (where, first) == (profile, fastest.row.deployment) and verdict != "not comparable":
                assert (second in rivals) == (verdict != "slower")
    for plane in choose.planes_of(found):
        assert not invalid & plane.rows.keys()
        assert plane.dominated
        for name, better in plane.dominated.items():
            assert verdicts.get((plane.profile, better, name), "slower") == "slower"


def test_a_run_is_slower_only_beyond_what_five_runs_differ_by(tmp_path: Path) -> None:
    def run(number: int, factor: float = 1.0) -> Path:
        def of_run(deployed: Deployed, cell: Cell, index: int) -> float:
            slower = factor if deployed.deployment.runtime == "torchscript" else 1.0
            return latency(deployed, cell, index) * slower * (1 + 0.02 * math.sin(7 * number))

        return build(tmp_path / f"run-{number}", MADE, of_run)

    *before, same, new = [run(number) for number in range(6)] + [run(6, 3.0)]
    said = medserve("compare", *before, new)
    assert said.returncode == 1
    assert said.stderr.count("\n") == 1
    assert "slower than before" in said.stderr
    found = json.loads(medserve("compare", *before, new, "--format", "json").stdout)
    keys = ["cell", "percentile", "value", "low", "high", "level", "verdict", "launches", "more", "reason"]
    assert list(found[0]) == keys
    verdicts = {one["cell"]: one["verdict"] for one in found}
    assert {verdict for cell, verdict in verdicts.items() if ".torchscript.cpu" in cell} == {"slower"}
    assert "slower" not in {verdict for cell, verdict in verdicts.items() if ".torchscript.cpu" not in cell}
    again = medserve("compare", *before, same)
    assert again.returncode == 0, again.stderr
    two = medserve("compare", same, new, "--format", "json")
    assert two.returncode == 0, "how far two runs differ by themselves is unknown"
    unknown = {(one["verdict"], one["more"], one["low"]) for one in json.loads(two.stdout)}
    assert unknown == {("between-run variance unknown", 4, None)}
    assert "between-run variance unknown: 4" in " ".join(medserve("compare", same, new).stdout.split())


def change_results(run: Path, **fields: object) -> None:
    import msgspec

    for path in run.glob("results/*/*/result.json"):
        store.write_json(path, msgspec.structs.replace(store.read_json(path, Result), **fields))


def test_runs_that_are_not_comparable_are_refused_by_the_first_thing_that_differs(run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    change_results(other, machine={**table.read(run).cells[0].machine, "cpu": "Another processor"})
    with pytest.raises(BadInput, match="not comparable: cpu is A processor in an earlier and Another processor"):
        pairs.changes([table.read(run)], table.read(other), 0.5)
    longer = study(
        sizes=(28,), frameworks=("pytorch",), measure=(Measure(profiles=("in-process-1", "closed-1"), seconds=9.0),)
    )
    with pytest.raises(BadInput, match="seconds of in-process-1 is"):
        pairs.changes([table.read(run)], table.read(build(tmp_path / "longer", longer, latency)), 0.5)
    small = study(sizes=(64,), frameworks=("pytorch",))
    with pytest.raises(BadInput, match="no measured cell in common"):
        pairs.changes([table.read(run)], table.read(build(tmp_path / "small", small, latency)), 0.5)


def state(path: Path, **fields: object) -> None:
    """Set fields of a manifest, known or not."""
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("words", [("report",), ("results",), ("compare",), ("verify",), ("compare", "with a new run")])
def test_a_run_of_an_older_version_is_refused_in_one_line(run: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    """Even where nothing else of it can be read, or its digests differ."""
    old = Path(shutil.copytree(run, tmp_path / "old"))
    state(next(old.glob("results/*/0/result.json")), schema=1, cell="as it was named")
    (old / "study.json").write_text("{}")
    done = medserve(words[0], *([run] if len(words) > 1 else []), old)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{old}: a run of version 1 (by results/" in done.stderr
    assert "this program reads 2 and later; read it with the medserve that wrote it, or" in done.stderr


def test_a_run_of_a_later_version_is_read_without_what_is_unknown(run: Path, tmp_path: Path) -> None:
    later = Path(shutil.copytree(run, tmp_path / "later"))
    for path in later.glob("results/*/*/result.json"):
        held = json.loads(path.read_text())
        profile = held["cell"]["profile"] | {"colour": "blue"}
        state(path, schema=3, moon={"phase": 0.5}, cell=held["cell"] | {"profile": profile})
    state(later / "study.json", mascot="a tardigrade")
    assert table.rows(table.read(later)) == table.rows(table.read(run))
    page.write(later)
    assert verify(later).differences == []
    changes = pairs.changes([table.read(run)], table.read(later), 0.5)
    assert [judged.ratio.value for judged in changes.values()] == pytest.approx([1.0] * len(changes))


def test_a_record_without_a_newer_field_has_its_default(run: Path, tmp_path: Path) -> None:
    earlier = Path(shutil.copytree(run, tmp_path / "earlier"))
    for path in earlier.glob("results/*/*/result.json"):
        held = json.loads(path.read_text())
        del held["limits"]
        path.write_text(json.dumps(held))
    assert table.rows(table.read(earlier)) == table.rows(table.read(run))


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
