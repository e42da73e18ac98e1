"""What the report advises, and the charts behind it: a run in which size costs time and buys accuracy."""

import csv
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from made_run import build, study
from msgspec.structs import replace

from loadtest import samples
from loadtest.analysis.intervals import Interval
from loadtest.report import axes, drawing, facts, figures, page, wording
from loadtest.report.document import Figure
from loadtest.report.sections import answer, breakdown, choose, costs, deployments, formats, load, resolution
from loadtest.results import objective, tabular
from loadtest.results.tabular import Cell as Shown
from loadtest.results.tabular import Column, Line, Table
from medserve.models import Recipe
from medserve.numbers import ABSENT, TIMES, number
from medserve.spec import Cell
from medserve.study import Deployed, Measure, Objective, Training

ACCURACY = {28: 0.90, 64: 0.97}
RATES = {"poisson-10": 10, "poisson-50": 50, "poisson-200": 200}
COLOURS = set(wording.COLOURS.values())
PROFILES = ("in-process-1", "closed-1", *RATES)


def latency(deployed: Deployed, cell: Cell, index: int) -> float:
    """1 ms at 28 px and 8 ms at 64 px; ONNX takes half, JAX three times as long; 200 a second waits ten times."""
    made = deployed.export.training
    if deployed.deployment.runtime == "null":
        return 0.05
    value = {28: 1.0, 64: 8.0}[made.size] * (0.5 if deployed.export.format == "onnx" else 1.0)
    value *= 3.0 if made.framework == "flax_nnx" else 1.0
    return value * (10 if cell.profile.name == "poisson-200" else 1) * (1.0, 1.01, 0.99, 1.0, 1.01)[index]


def accuracy(training: Training) -> float:
    return ACCURACY[training.size] + (0.001 if training.framework == "flax_nnx" else 0.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = study(
        frameworks=("pytorch", "flax_nnx"),
        launches=5,
        measure=(Measure(profiles=PROFILES),),
        recipe=Recipe(epochs=4),
    )
    folder = build(tmp_path_factory.mktemp("runs") / "made", made, latency, accuracy=accuracy)
    page.write(folder)
    return folder


@pytest.fixture(scope="module")
def read(run: Path) -> facts.Facts:
    return facts.read(run)


def said(figure: Figure | None) -> list[str]:
    """What the marks of a figure say to who cannot see it, or points at it."""
    assert figure is not None
    elements = [element for panel in figure.panels for element in ElementTree.fromstring(bare(panel.svg)).iter()]
    return [label for element in elements if (label := element.get("aria-label"))]


def bare(svg: str) -> str:
    return re.sub(r"\sxmlns(:\w+)?=\"[^\"]*\"|xlink:", "", svg)


def lines(table: Table | None) -> list[list[str]]:
    assert table is not None
    return [[cell.text for cell in line.cells] for line in table.lines]


def test_the_advice_is_the_most_accurate_that_holds_the_limit(read: facts.Facts) -> None:
    table = choose.objectives(read)
    assert table is not None
    advice = {
        (line.cells[0].text.replace("\N{NO-BREAK SPACE}", " ").removesuffix(" ms"), line.cells[0].note): (
            line.cells[1].text,
            line.cells[1].note,
            line.cells[2].text,
        )
        for line in table.lines
    }
    # p99 is 1.49 times the median: 0.75 ms for ONNX at 28 px, 6 ms at 64 px.
    assert advice["p99 < 1", "1 user, back to back"] == ("PyTorch", "ONNX", "28")
    assert advice["p99 < 10", "1 user, back to back"] == ("PyTorch", "ONNX", "64")
    assert advice["p99 < 10", "at 50 requests per second, Poisson"] == ("PyTorch", "ONNX", "64")
    assert advice["p99 < 10", "at 200 requests per second, Poisson"] == ("PyTorch", "ONNX", "28")
    assert advice["p99 < 100", "at 200 requests per second, Poisson"] == ("PyTorch", "ONNX", "64")
    assert "in process" not in str(advice)
    assert len(advice) == 2 * (1 + len(RATES)), "a wider limit that changes nothing is no line"


def test_whoever_is_as_accurate_but_slower_is_named(read: facts.Facts) -> None:
    table = choose.objectives(read)
    assert table is not None
    assert "JAX/Flax ONNX, 28 px" not in table.lines[0].cells[-1].text, "its p99 lies above the limit"
    assert "PyTorch TorchScript, 64 px" not in table.lines[1].cells[-1].text
    assert table.lines[0].cells[3].value == pytest.approx(0.90)
    assert "different numbers of epochs" not in table.caption


def test_a_percentile_that_a_sample_does_not_carry_is_no_objective(tmp_path: Path) -> None:
    made = study(sizes=(28,), frameworks=("pytorch",), measure=(Measure(profiles=("closed-1",)),))
    few = choose.objectives(facts.read(build(tmp_path / "few", made, latency, count=100)))
    assert {words[0][:3] for words in lines(few)} == {"p90"}
    one = study(sizes=(28,), frameworks=("pytorch",), measure=(Measure(profiles=("closed-1",)),), launches=1)
    assert choose.objectives(facts.read(build(tmp_path / "one", one, latency))) is None


def test_failures_are_above_every_limit(tmp_path: Path) -> None:
    def failing(cell: Cell, columns: dict[str, Any]) -> dict[str, Any]:
        if cell.deployment.runtime == "onnx_runtime":
            columns["status"][::20] = 500
        return columns

    made = study(sizes=(28,), frameworks=("pytorch",), measure=(Measure(profiles=("closed-1",)),))
    found = choose.objectives(facts.read(build(tmp_path / "run", made, latency, change=failing)))
    assert [(words[0][:3], words[1]) for words in lines(found)] == [("p99", "PyTorch")]
    assert found is not None
    assert found.lines[0].cells[1].note == "TorchScript"


def test_the_front_names_what_is_dominated_and_by_what(read: facts.Facts) -> None:
    table = choose.fronts(read)
    assert table is not None
    closed = [column.title for column in table.columns].index("HTTP, closed loop")
    standing = {
        (line.cells[0].text, line.cells[0].note, line.cells[1].text): line.cells[closed] for line in table.lines
    }
    assert standing["PyTorch", "ONNX", "28"].text == "on the front"
    assert standing["PyTorch", "ONNX", "64"].text == "on the front"
    dominated = standing["PyTorch", "TorchScript", "28"]
    assert (dominated.text, dominated.note) == ("dominated", "by PyTorch ONNX, 28 px")
    assert standing["JAX/Flax", "ONNX", "28"].text == "on the front", "it may be more accurate"
    assert standing["JAX/Flax", "StableHLO", "64"].text == "dominated"


def test_the_front_is_drawn_with_every_deployment(read: facts.Facts) -> None:
    figure = choose.figure(read)
    words = said(figure)
    assert figure is not None
    assert len(figure.panels) == len(PROFILES)
    assert [word for word in words if word.startswith("PyTorch ONNX, 28 px: 90.00 % at a median of 0.50")]
    assert sum("on the front are" in word for word in words) == len(PROFILES)


def test_every_launch_is_a_line_of_its_own(read: facts.Facts) -> None:
    figure = deployments.distributions(read)
    assert figure is not None
    assert len(figure.panels) == 2 * 3, "two sizes; in process, closed and the first open loop"
    for panel in figure.panels:
        strokes = [one for one in ElementTree.fromstring(bare(panel.svg)).iter("path") if one.get("stroke") in COLOURS]
        assert len(strokes) == 4 * 5, "four deployments, five launches"
        assert "20 launches" in panel.alt
    assert not any(math.isinf(end) for curves in read.curves.values() for one in curves for end in one.shares)


def test_latency_against_the_delivered_rate_marks_the_saturation_point(read: facts.Facts) -> None:
    words = said(load.rates(read))
    delivered = next(row for row in read.rows if row.profile == "poisson-50").rate_delivered
    assert [word for word in words if f"{number(delivered)} requests/s: p50 0.50" in word]
    assert [word for word in words if ": p99 0.7" in word]
    assert load.users(read) is None, "one number of users is no ladder"


def test_the_breakdown_is_stacked_from_its_parts(read: facts.Facts) -> None:
    words = said(breakdown.figure(read))
    infer = next(word for word in words if word.startswith("PyTorch TorchScript, infer: 0.6"))
    assert infer.endswith("60.0 %")


def test_training_is_drawn_by_epoch_and_by_what_it_took(read: facts.Facts) -> None:
    words = said(costs.curves(read))
    assert "PyTorch, 28 px, epoch 4: 0.250 loss" in words
    assert "JAX/Flax, 64 px, epoch 2: 82.0 %" in words
    took = said(costs.efficiency(read))
    assert "28 px JAX/Flax: 270 images/s" in took
    assert "28 px PyTorch: 95.0 seconds to finish" in took


def test_the_key_explains_the_marks_that_are_drawn(read: facts.Facts) -> None:
    keys = {}
    for figure in (costs.curves(read), choose.figure(read), formats.figure(read), breakdown.figure(read)):
        assert figure is not None
        keys[figure.name] = [name for name, _ in figure.key]
    assert keys["training"] == ["PyTorch", "JAX/Flax"], "all is native"
    assert keys["front"] == ["PyTorch", "JAX/Flax", "native", "ONNX"]
    assert keys["native-onnx"] == ["PyTorch", "JAX/Flax", "faster or slower"]
    assert keys["breakdown"][:2] == ["client queue", "request path"], "in the order of time"


def test_an_interval_beyond_the_axis_is_cut_and_the_caption_says_so(read: facts.Facts) -> None:
    wide = axes.Axis(title="ms", over=[Interval(value=1.0, low=0.9, high=1.1), Interval(value=2.0, low=1e-3, high=1e3)])
    assert wide.cuts
    assert wide.domain == pytest.approx((1 / 2.5 / 1.15, 2 * 2.5 * 1.15))
    assert not axes.Axis(title="ms", over=wide.over[:1]).cuts
    points = [drawing.point(row, row.cell, "", wide.over[1]) for row in read.rows[:2]]
    found = figures.figure("latency", "", [drawing.rows(points, wide, "")])
    assert found is not None
    assert found.caption.endswith(figures.CUT)
    assert "Infinity" not in found.svg
    assert "NaN" not in found.svg


def test_one_epoch_is_no_curve(tmp_path: Path) -> None:
    made = study(frameworks=("pytorch",), measure=(Measure(profiles=("in-process-1",)),), recipe=Recipe(epochs=1))
    assert costs.curves(facts.read(build(tmp_path / "run", made, latency))) is None


def test_every_record_is_read_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []
    real = samples.read

    def reading(path: Path, *rest: Any) -> Any:
        seen.append(path)
        return real(path, *rest)

    monkeypatch.setattr(samples, "read", reading)
    facts.read(run)
    assert sorted(seen) == sorted(run.glob("results/*/*/samples.parquet"))


def test_what_was_measured_wrongly_on_purpose_is_shown_nowhere(tmp_path: Path) -> None:
    profiles = ("in-process-1-one-image", "closed-1-json", "in-process-1", "closed-1")
    made = study(sizes=(28,), frameworks=("pytorch",), measure=(Measure(profiles=profiles),))
    read = facts.read(build(tmp_path / "run", made, latency))
    assert {row.profile for row in read.mistaken} == set(profiles[:2])
    assert {words[0] for words in lines(choose.objectives(read))} == {
        "p99\N{NO-BREAK SPACE}<\N{NO-BREAK SPACE}1\N{NO-BREAK SPACE}ms"
    }
    for figure in (deployments.distributions(read), choose.figure(read), resolution.latency_at_one_size(read)):
        assert figure is not None
        assert len(figure.panels) == 2, figure.name


def test_every_table_is_a_file_in_three_forms(run: Path) -> None:
    names = sorted(path.name for path in (run / "tables").iterdir())
    stems = {name.partition(".")[0] for name in names}
    assert {"choose-the-best-for-an-objective", "deployments-28-px", "formats", "costs-training"} <= stems
    assert names == sorted(f"{stem}.{kind}" for stem in stems for kind in ("csv", "md", "tex"))
    linked = set(re.findall(r'href="tables/([^"]+)"', (run / "report.html").read_text()))
    assert linked == set(names)
    with (run / "tables" / "choose-the-best-for-an-objective.csv").open() as file:
        first = next(csv.DictReader(file))
    assert float(first["accuracy, %"]) == pytest.approx(0.90)
    assert first["choose (beside)"] == "ONNX"


def test_a_table_in_latex_has_one_line_a_line_and_nothing_that_latex_takes_amiss() -> None:
    columns = (Column("what & why", numeric=False), Column("p50", "ms", "HTTP_1"), Column("p99", "ms", "HTTP_1"))
    cells = (Shown("50 % of <all>"), Shown(f"6.56 {TIMES} 10⁻⁷", "[1, 2]", 6.56e-7), Shown(ABSENT))
    found = tabular.as_latex(Table("", columns, (Line(cells, ("a\nremark",)),)))
    assert found.splitlines() == [
        "% a remark",
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"\multicolumn{1}{l}{} & \multicolumn{2}{l}{HTTP\_1} \\",
        r"what \& why & p50 (ms) & p99 (ms) \\",
        r"\midrule",
        r"50 \% of \textless{}all\textgreater{} & 6.56 $\times$ 10$^{-7}$ {\footnotesize [1, 2]} & -- \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    assert tabular.as_csv(Table("", columns, (Line(cells, ("a\nremark",)),))).splitlines()[0] == (
        'what & why,"HTTP_1, p50, ms","HTTP_1, p50, ms (beside)","HTTP_1, p99, ms",remarks'
    )


def objective_run(folder: Path, objective: Objective, launches: int = 5) -> facts.Facts:
    made = study(
        frameworks=("pytorch", "flax_nnx"),
        launches=launches,
        measure=(Measure(profiles=("closed-1",)),),
        recipe=Recipe(epochs=4),
        objective=objective,
    )
    return facts.read(build(folder, made, latency, accuracy=accuracy))


@pytest.mark.parametrize(
    ("asked", "standings"),
    [
        (
            Objective(rate=120, p50_ms=1.2),
            {"28 torchscript": "passes", "28 stablehlo": "fails", "64 torchscript": "fails"},
        ),
        (Objective(rate=120, p99_ms=100.0), {"28 torchscript": "passes", "64 stablehlo": "passes"}),
        (Objective(rate=120, p50_ms=100.0, accuracy=0.95), {"28 torchscript": "fails", "64 onnx_runtime": "passes"}),
        (Objective(rate=120, p50_ms=100.0, accuracy=0.9), {"28 torchscript": "undecided", "64 stablehlo": "passes"}),
        (Objective(rate=120, p50_ms=1.003), {"28 torchscript": "undecided", "28 onnx_runtime": "passes"}),
    ],
)
def test_who_holds_the_objective(tmp_path: Path, asked: Objective, standings: dict[str, str]) -> None:
    read = objective_run(tmp_path / "run", asked)
    every = choose.held(read)
    found = {f"{one.row.size} {one.row.runtime}": one for one in every if one.row.source_artifact.count("pytorch")}
    found |= {f"{one.row.size} stablehlo": one for one in every if one.row.runtime == "stablehlo"}
    assert {name: found[name].standing for name in standings} == standings
    assert {one.row.profile for one in every} == {"poisson-120"}
    undecided = [one for one in every if one.standing == "undecided"]
    assert all(one.reason for one in undecided)
    table = choose.study_objective(read)
    assert table is not None
    assert len(table.lines) == 8
    said = "".join(piece.text for piece in answer.sentences(read)[0])
    assert ("might pass: " in said) == bool(undecided)


def test_an_objective_that_none_holds_is_said(tmp_path: Path) -> None:
    read = objective_run(tmp_path / "run", Objective(rate=120, p50_ms=0.01))
    said = "".join(piece.text for piece in answer.sentences(read)[0])
    assert said == ("p50 < 0.01 ms at 120 requests/s (Poisson arrivals): no deployment is shown to pass; 8 of 8 fail.")
    assert answer.settling(read, "runs/mine") == ""


def test_what_would_settle_it_is_a_command(tmp_path: Path) -> None:
    read = objective_run(tmp_path / "run", Objective(rate=120, p50_ms=1.01))
    assert re.fullmatch(
        r"To settle: about \d+ more launch(es)? \(.*\) for the first of \d+ undecided comparisons?: "
        r"medserve run runs/mine --more-launches \d+",
        answer.settling(read, "runs/mine"),
    )


def test_a_late_generator_can_make_a_deployment_fail_and_not_pass(tmp_path: Path) -> None:
    asked = Objective(rate=120, p50_ms=1.2)
    read = objective_run(tmp_path / "run", asked)

    def judged(**changed: bool) -> dict[str, str]:
        rows = [replace(row, **changed) for row in read.rows]
        found = objective.judge(asked, rows, lambda name, cell: read.percentiles[name][cell], lambda _: 1000)
        return {one.row.cell: one.standing for one in found}

    sound, late = judged(), judged(valid=False, late=True)
    assert set(sound.values()) == {"passes", "fails"}
    assert late == {cell: "passes" if standing == "passes" else "undecided" for cell, standing in sound.items()}
    assert set(judged(valid=False).values()) == {"not measured"}
