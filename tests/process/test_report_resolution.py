"""The report over resolution, and of claims: known responses and known truths in their places."""

from pathlib import Path

import pytest
from made_run import build, study
from test_report import Reader

from loadtest.report import facts, page
from loadtest.report.sections import claims, costs, resolution
from medserve.spec import Cell
from medserve.study import Claim, Deployed, Measure, Subject

CLAIMS = (
    Claim(
        who="A study",
        where="abstract",
        what="JAX is faster than PyTorch",
        test="faster",
        first=Subject(framework="flax_nnx"),
        second=Subject(framework="pytorch"),
    ),
    Claim(who="A study", where="abstract", what="Nobody knows", test="none", why="it names no number"),
)


def latency(deployed: Deployed, cell: Cell, index: int) -> float:
    """PyTorch: 0.1 ms and 100 ns a pixel; JAX: 1 ms and 20 ns; so they cross at 106 px. Blocks drift."""
    if deployed.deployment.runtime == "null":
        return 0.05
    fixed, pixel = (0.1, 1e-4) if deployed.export.training.framework == "pytorch" else (1.0, 2e-5)
    wobble = 1 + 0.002 * ((index * 7 + deployed.export.training.size) % 3)
    return (fixed + pixel * deployed.export.training.size**2) * (1.0, 1.2, 0.9)[index] * wobble


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = study(
        sizes=(28, 64, 128, 224),
        frameworks=("pytorch", "flax_nnx"),
        formats=("native",),
        measure=(Measure(profiles=("in-process-1", "closed-1")),),
        claims=CLAIMS,
    )
    folder = build(tmp_path_factory.mktemp("run") / "made", made, latency)
    page.write(folder)
    return folder


def test_fixed_cost_cost_a_pixel_and_exponent_stand_in_the_report(run: Path) -> None:
    inside, outside = resolution.responses(facts.read(run))
    assert (inside.title, outside.title) == ("In process, one image", "HTTP, closed loop")
    pytorch, jax = inside.lines
    assert pytorch.cells[1].value == pytest.approx(0.1 * 1.033, rel=0.05)
    assert pytorch.cells[2].value == pytest.approx(100 * 1.033, rel=0.05)
    assert jax.cells[1].value == pytest.approx(1.0 * 1.033, rel=0.05)
    assert jax.cells[2].value == pytest.approx(20 * 1.033, rel=0.05)
    assert pytorch.cells[3].value is not None
    assert jax.cells[3].value is not None
    assert pytorch.cells[3].value > jax.cells[3].value


def test_the_crossover_names_who_is_ahead_where(run: Path) -> None:
    found = resolution.crossovers(facts.read(run))
    assert found is not None
    (line,) = found.lines
    assert "PyTorch" in line.cells[0].text
    assert "JAX" in line.cells[1].text
    assert line.cells[2].value == pytest.approx(106, rel=0.1)


def test_claims_stand_under_each_protocol_with_what_was_found(run: Path) -> None:
    found = claims.tables(facts.read(run))[0]
    assert [(line.cells[2].text, line.cells[5].text) for line in found.lines] == [
        ("HTTP, closed loop", "holds"),
        ("In process, one image", "holds"),
        ("\N{EN DASH}", "not testable here"),
    ]
    text = Reader((run / "report.html").read_text()).text
    assert "Published claims" in text
    assert "it names no number" in text


def test_costs_are_those_of_the_servers(run: Path) -> None:
    found = costs.serving(facts.read(run))
    assert found is not None
    first = found.lines[0]
    # made_run's server takes 0.9 s for 401 requests, with a peak of 256 MiB; its network is right in 97 % of cases.
    assert first.cells[2].value == pytest.approx(900 / 401)
    assert first.cells[3].value == pytest.approx(900 / 401 / 0.97)
    assert [first.cells[place].value for place in (4, 5)] == [pytest.approx(802 / 401), pytest.approx(1203 / 401)]
    assert first.cells[6].text == "256"


def test_a_run_of_one_size_and_no_claims_has_neither_section(tmp_path: Path) -> None:
    made = study(sizes=(28,), frameworks=("pytorch",), measure=(Measure(profiles=("in-process-1",)),))
    page.write(build(tmp_path / "run", made, lambda deployed, cell, index: 1.0))
    text = Reader((tmp_path / "run/report.html").read_text()).text
    assert "Published claims" not in text
    assert "Crossovers" not in text
