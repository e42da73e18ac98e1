"""What the report says of training: every recipe and seed that was asked for, each under its name."""

from pathlib import Path
from typing import Any

import pytest
from made_run import build, prove, study

from loadtest.report import facts, page
from loadtest.report.facts import Facts
from loadtest.report.sections import certificates, choose, costs
from loadtest.report.sections.claims import tables as claims_of
from loadtest.results.tabular import Table
from medserve.models import Recipe
from medserve.numbers import ABSENT
from medserve.study import Claim, Measure, Subject

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
    return cells(table, title, "text")


def cells(table: Table | None, title: str, what: str) -> list[Any]:
    assert table is not None
    place = [one.title for one in table.columns].index(title)
    return [getattr(line.cells[place], what) for line in table.lines]


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


def test_accuracies_of_labels_say_so_and_are_never_compared_with_those_of_images(tmp_path: Path) -> None:
    who = {"who": "A", "what": "it is accurate", "where": "B"}
    claims = tuple(
        Claim(**who, test=test, first=Subject(framework="pytorch"), second=Subject(framework="keras_tf"), at_least=0.1)
        for test in ("accurate", "faster")
    )
    for datasets, where, finding, reason in (
        (("chestmnist",), "Test split", "holds", ""),
        (("bloodmnist", "chestmnist"), ABSENT, "not testable here", "accuracies of images and of labels"),
    ):
        made = study(datasets=datasets, sizes=(28,), frameworks=("pytorch", "keras_tf"), claims=claims)
        found = facts.read(build(tmp_path / str(len(datasets)), made, lambda *_: 1.0))
        notes = ["of labels" if name == "chestmnist" else "" for name in datasets for _ in made.frameworks]
        for title in ("accuracy", "balanced"):
            assert cells(costs.training(found), title, "note") == notes
        judged = {line.cells[2].text: line.cells[-1] for line in claims_of(found)[0].lines}
        assert judged[where].text == finding
        assert reason in judged[where].note
        assert len(judged) > 2, "latencies are compared all the same"
        # Each data set has a panel of its own, and accuracies of labels another axis.
        charts = [panel.svg for panel in choose.figure(found).panels]
        assert sum("accuracy of labels, %" in chart for chart in charts) == len(charts) / len(datasets)
        assert sum("accuracy, %" in chart for chart in charts) == len(charts) * (1 - 1 / len(datasets))
        assert "accuracy of labels" in costs.curves(found).panels[-1].svg
        per_correct = cells(costs.serving(found), "per correct prediction", "value")
        assert sum(value is not None for value in per_correct) == 4 * (len(datasets) - 1)


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
