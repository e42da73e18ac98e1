"""Intervals of one record hold the truth as often as they say, correlated or not."""

import re

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from loadtest.analysis import intervals, within_launch

MS = 1_000_000
TRIALS = 1000


def series(generator: np.random.Generator, count: int, correlation: float) -> NDArray[np.float64]:
    """Lognormal latencies whose logarithms follow an AR(1) process of unit variance."""
    from scipy.signal import lfilter

    noise = generator.standard_normal(count) * np.sqrt(1 - correlation**2)
    noise[0] /= np.sqrt(1 - correlation**2)
    found: NDArray[np.float64] = np.exp(0.2 * lfilter([1.0], [1.0, -correlation], noise)) * MS
    return found


@pytest.mark.parametrize(
    ("p", "count", "correlation", "lowest", "highest"),
    [
        (0.5, 500, 0.0, 0.93, 0.98),
        (0.9, 1000, 0.0, 0.93, 0.98),
        (0.99, 5000, 0.0, 0.93, 0.985),
        (0.5, 3000, 0.7, 0.92, 0.98),
        (0.9, 5000, 0.7, 0.92, 0.98),
    ],
)
def test_the_interval_holds_the_truth_in_about_95_of_100(
    p: float, count: int, correlation: float, lowest: float, highest: float
) -> None:
    truth = float(np.exp(0.2 * stats.norm.ppf(p)))
    generator = np.random.default_rng(1)
    inside = 0
    for _ in range(TRIALS):
        values = series(generator, count, correlation)
        found = within_launch.percentile_interval(values, np.sort(values), p)
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= truth <= found.high
    assert lowest * TRIALS <= inside <= highest * TRIALS


def test_just_enough_requests_hold_the_truth_as_often() -> None:
    truth = float(np.exp(0.2 * stats.norm.ppf(0.99)))
    generator = np.random.default_rng(4)
    made = (series(generator, 400, 0.0) for _ in range(TRIALS))
    found = [within_launch.percentile_interval(values, np.sort(values), 0.99) for values in made]
    ends = [(one.low, one.high) for one in found if one.low is not None and one.high is not None]
    assert len(ends) > 0.8 * TRIALS
    assert 0.93 <= np.mean([low <= truth <= high for low, high in ends]) <= 0.98
    # Neither end is the one that gives.
    assert np.mean([truth > high for _, high in ends]) <= 0.04


def test_correlated_requests_widen_it() -> None:
    generator = np.random.default_rng(2)
    calm, sticky = (series(generator, 4000, correlation) for correlation in (0.0, 0.9))
    widths = []
    for values in (calm, sticky):
        found = within_launch.percentile_interval(values, np.sort(values), 0.5)
        assert found.low is not None
        assert found.high is not None
        widths.append(found.high - found.low)
    assert widths[1] > 2 * widths[0]


def test_correlated_requests_cost_the_interval_and_not_the_value() -> None:
    values = np.repeat(series(np.random.default_rng(5), 100, 0.0), 10)
    found = within_launch.percentile_interval(values, np.sort(values), 0.99)
    assert found.value == intervals.percentile(np.sort(values), 0.99) / 1e6
    assert (found.low, found.high) == (None, None)
    assert re.fullmatch(
        r"p99: no interval, 1,000 correlated requests are worth \d+ independent ones < 368", str(found.reason)
    )


def test_what_the_record_cannot_carry_has_a_reason() -> None:
    values = series(np.random.default_rng(3), 367, 0.0)
    assert "p99: n 367 < 368" in str(within_launch.percentile_interval(values, np.sort(values), 0.99).reason)
    failed = np.full(1000, np.inf)
    assert "infinite" in str(within_launch.percentile_interval(failed, failed, 0.5).reason)
    assert within_launch.percentile_interval(failed[:0], failed[:0], 0.5).value is None
    few = np.where(np.arange(1000) < 100, np.inf, MS)
    assert within_launch.percentile_interval(few, np.sort(few), 0.899).high is None
