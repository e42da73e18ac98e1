"""The report of several runs of one study: where verdicts agree and flip, and what runs of one machine differ by."""

import re
from pathlib import Path

import msgspec
import pytest
from conftest import Stage
from made_run import build, study

from loadtest.report import facts, several
from loadtest.report.facts import Facts
from loadtest.results import bundle
from medserve import store
from medserve.errors import BadInput
from medserve.result import Result
from medserve.spec import Cell
from medserve.study import Deployed, Measure

MADE = study(sizes=(28,), frameworks=("pytorch", "keras_tf"), measure=(Measure(profiles=("in-process-1", "closed-1")),))


def made(folder: Path, name: str, onnx: dict[str, float], cpu: str = "A processor") -> Path:
    """A run in which ONNX takes this share of the time of each framework's own format."""

    def latency(deployed: Deployed, cell: Cell, index: int) -> float:
        share = onnx[deployed.export.framework] if deployed.export.format == "onnx" else 1.0
        return 2.0 * share * (1 + 0.001 * index)

    run = build(folder / name, MADE, latency)
    for path in run.glob("results/*/*/result.json"):
        result = store.read_json(path, Result)
        store.write_json(path, msgspec.structs.replace(result, machine=result.machine | {"cpu": cpu}))
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Facts]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        "a": facts.read(made(folder, "a", {"pytorch": 0.5, "keras_tf": 0.5})),
        "b": facts.read(made(folder, "b", {"pytorch": 0.5, "keras_tf": 1.5}, "Another processor")),
        "c": facts.read(made(folder, "c", {"pytorch": 0.5, "keras_tf": 0.5})),
    }


def test_a_verdict_that_flips_between_machines_is_named(runs: dict[str, Facts]) -> None:
    native = [one for one in several.pairs_across(runs) if one.one.kind == "native against ONNX"]
    agreements = {(one.one.first.framework, one.one.first.profile): one.agreement for one in native}
    assert agreements == {
        ("pytorch", "in-process-1"): "agree",
        ("pytorch", "closed-1"): "agree",
        ("keras_tf", "in-process-1"): "flip",
        ("keras_tf", "closed-1"): "flip",
    }
    assert several.pairs_across({"a": runs["a"]})[0].agreement == "in one run only"


def test_the_page_never_ranks_over_machines(runs: dict[str, Facts]) -> None:
    page = several.compose(runs)
    said = "".join(piece.text for piece in page.answer[0])
    assert re.search(r"\d+ of \d+ pairs have the same verdict in all runs that have them, and \d+ the opposite", said)
    verdicts, spread, listed = page.sections
    assert [block.title for block in spread.blocks] == ["A processor, 2 cores"], "only runs of one machine kind"
    (beside,) = spread.blocks
    assert [column.title for column in beside.columns][3:5] == ["a", "c"]
    assert all("between-run variance unknown: 4 more to tell" in line.cells[-1].note for line in beside.lines)
    assert len(listed.blocks[0].lines) == 3
    assert next(line.cells[4].text for line in verdicts.blocks[0].lines) == "flip", "what flips is first"
    assert page.picture is not None
    assert len(page.picture.panels) == 3


def test_the_command_takes_runs_and_bundles(tmp_path: Path, stage: Stage) -> None:
    first = made(tmp_path, "a", {"pytorch": 0.5, "keras_tf": 0.5})
    second = made(tmp_path, "b", {"pytorch": 0.5, "keras_tf": 1.5}, "Another processor")
    done = stage("loadtest", "report", str(second))
    assert done.returncode == 0, done.stderr
    bundle.write(second, tmp_path / "b.zip")
    out = tmp_path / "both" / "report.html"
    done = stage("loadtest", "report", str(first), str(tmp_path / "b.zip"), "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == out
    text = out.with_suffix(".md").read_text()
    assert "Another processor" in text
    assert "flip" in text
    assert (out.parent / "figures" / "ratios.svg").is_file()


def test_runs_of_two_studies_are_refused(runs: dict[str, Facts]) -> None:
    other = msgspec.structs.replace(runs["b"], study=msgspec.structs.replace(MADE, name="other"))
    with pytest.raises(BadInput, match="b is a run of the study other, and a of made"):
        several.compose({"a": runs["a"], "b": other})
