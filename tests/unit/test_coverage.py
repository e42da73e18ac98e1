"""The benchmarks of the statistics and of the report, at a glance: their full size is for `make bench-statistics`."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Stage
from scipy import stats

from loadtest.benchmark import coverage, large, publishing
from loadtest.results import table
from medserve.errors import CannotRun

SLACK = 6.0
"""Per cent beyond a target that a hundred trials may show; the seeds are fixed, so what passes passes always."""


def test_what_the_analysis_promises_holds_on_simulated_series() -> None:
    lines = list(coverage.measure(100))
    assert {line.part for line in lines} == {
        "one launch",
        "launches",
        "ratio",
        "flags",
        "records",
        "verdicts",
        "theory",
    }
    for line in lines:
        assert line.value is not None
        assert (line.low or 0.0) - SLACK <= line.value <= (line.high or 100.0) + SLACK, line
    held = [line.value for line in lines if line.low == 93]
    assert 94 <= np.mean([one for one in held if one is not None]) <= 97


def test_a_line_is_the_same_whatever_stands_before_it() -> None:
    first, again = (next(coverage.measure(20)) for _ in range(2))
    assert first == again


@pytest.mark.parametrize("p", [0.5, 0.9, 0.99])
def test_simulated_series_have_the_percentiles_that_they_say(p: float) -> None:
    generator = np.random.default_rng(5)
    for series in (coverage.autoregressive(0.0), coverage.autoregressive(0.9), coverage.mixture(0.2, 2.0, 0.15)):
        found = np.quantile(series.draw(generator, 2_000_000), p)
        assert found == pytest.approx(series.quantile(p), rel=0.01)


def test_autoregressive_series_are_as_correlated_as_they_say() -> None:
    values = np.log(coverage.autoregressive(0.9).draw(np.random.default_rng(6), 200_000))
    assert stats.pearsonr(values[:-1], values[1:]).statistic == pytest.approx(0.9, abs=0.01)


def test_a_missed_target_is_an_error(stage: Stage) -> None:
    # Of twenty trials one more or less is five per cent: some interval seems to hold too often or too seldom.
    done = stage("loadtest.benchmark", "coverage", "--trials", "20", "--json")
    assert done.returncode == 1
    assert "figures miss their target" in done.stderr
    assert {line["ok"] for line in json.loads(done.stdout)} >= {True, False}


def test_the_large_run_is_a_run_of_200_cells(tmp_path: Path) -> None:
    large.run(tmp_path / "large", 40_000)
    rows = table.rows(table.read(tmp_path / "large"))
    assert len(rows) == 200
    assert {row.status for row in rows} == {"done"}
    assert {row.launches for row in rows} == {5}
    assert sum(row.n for row in rows) == 40_000
    with pytest.raises(CannotRun, match="exists"):
        next(publishing.measure(tmp_path / "large", 0.001))


def test_the_first_paint_of_a_page(tmp_path: Path) -> None:
    if shutil.which("chromium") is None:
        pytest.skip("no chromium on the path; apt-get install chromium")
    page = tmp_path / "page.html"
    page.write_text("<!doctype html><title>.</title><p>drawn")
    assert 0.0 < publishing.first_paint(page) < 60.0
