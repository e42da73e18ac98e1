"""What the report says of training: every recipe and seed that was asked for, each under its name."""

from pathlib import Path

import pytest
from made_run import build, prove, study

from loadtest.report import facts, page
from loadtest.report.facts import Facts
from loadtest.report.sections import certificates, costs
from loadtest.results.tabular import Table
from medserve.models import Recipe
from medserve.study import Measure

MADE = study(
    sizes=(28,),
    frameworks=("pytorch", "keras_tf"),
    trained_in="pytorch",
    variants={"scratch": {}, "whole": {"learning_rate": 1e-4}},
    serves=("whole",),
    seeds=(0, 1),
    target_accuracy=0.82,
    recipe=Recipe(epochs=4),
    measure=(Measure(profiles=("in-process-1", "closed-1")),),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four trainings, of which one is served, in two frameworks and two formats."""
    scores = {("scratch", 0): 0.80, ("scratch", 1): 0.90, ("whole", 0): 0.93, ("whole", 1): 0.95}
    return build(
        tmp_path_factory.mktemp("runs") / "made",
        MADE,
        lambda *_: 1.0,
        accuracy=lambda one: scores[one.variant, one.recipe.seed],
    )


@pytest.fixture(scope="module")
def found(run: Path) -> Facts:
    return facts.read(run)


def column(table: Table | None, title: str) -> list[str]:
    assert table is not None
    place = [one.title for one in table.columns].index(title)
    return [line.cells[place].text for line in table.lines]


def test_every_recipe_and_seed_has_a_line(found: Facts) -> None:
    table = costs.training(found)
    assert column(table, "recipe") == ["scratch", "scratch", "whole", "whole"]
    assert column(table, "accuracy") == ["80.00", "90.00", "93.00", "95.00"]
    assert column(table, "seed") == ["0", "1", "0", "1"]
    # made_run: 0.81 after the first epoch of nine seconds, 0.82 after the second.
    assert column(table, "to 82% (validation)") == ["18 s"] * 4
    assert table is not None
    assert all(len(line.cells) == len(table.columns) for line in table.lines)


def test_over_the_seeds_there_are_mean_and_spread_and_never_the_best(found: Facts) -> None:
    table = costs.seeds(found)
    assert table is not None
    assert column(table, "recipe") == ["scratch", "whole"]
    assert column(table, "accuracy") == ["85.00", "94.00"]
    place = [one.title for one in table.columns].index("accuracy")
    assert [line.cells[place].note for line in table.lines] == ["± 7.07", "± 1.41"]


def test_charts_tell_recipes_and_seeds_apart(found: Facts) -> None:
    figure = costs.efficiency(found)
    assert figure is not None
    for name in ("scratch, seed 0", "scratch, seed 1", "whole, seed 0", "whole, seed 1"):
        assert name in figure.panels[0].svg
    curves = costs.curves(found)
    assert curves is not None


def test_one_function_is_proven_of_what_is_served(run: Path) -> None:
    prove(run)
    table = certificates.agreements(facts.read(run))
    assert table is not None
    (line,) = table.lines
    assert column(table, "recipe") == ["whole"]
    assert column(table, "deployments") == ["4"]
    assert line.cells[-1].text == "yes"
    written = page.write(run)
    assert "Agreement of deployments" in written[0].read_text()
