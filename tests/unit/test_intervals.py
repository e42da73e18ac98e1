"""Percentiles and intervals: functions of samples, checked against what is known of them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from loadtest.analysis import intervals


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=300), st.sampled_from([0.01, 0.1, 0.5, 0.9, 0.99, 0.999]))
def test_a_percentile_is_the_inverse_of_the_empirical_distribution(values: list[float], p: float) -> None:
    ordered = np.sort(np.array(values))
    assert intervals.percentile(ordered, p) == np.quantile(ordered, p, method="inverted_cdf")


@pytest.mark.parametrize(("p", "least"), [(0.5, 6), (0.9, 36), (0.99, 368), (0.999, 3688)])
def test_the_least_samples_are_those_of_the_binomial(p: float, least: int) -> None:
    assert intervals.least_samples(p) == least
    # The whole range of n draws misses the percentile on one side with probability p^n, or (1-p)^n.
    assert stats.binom.pmf(least, least, p) <= 0.025 < stats.binom.pmf(least - 1, least - 1, p)
    few = [np.arange(float(least - 1))] * 3
    assert intervals.estimate(few, p).value is None
    assert f"n {least - 1:,} < {least:,} in a launch" in str(intervals.estimate(few, p).reason)
    assert intervals.estimate([np.arange(1.0, least + 1)] * 3, p).value is not None


def test_the_interval_is_students_t_on_the_logarithms() -> None:
    launches = [np.full(10, value * 1e6) for value in (1.0, 1.3, 0.9, 1.1)]
    found = intervals.estimate(launches, 0.5)
    logs = np.log([1.0, 1.3, 0.9, 1.1])
    low, high = stats.t.interval(0.95, 3, loc=logs.mean(), scale=stats.sem(logs))
    assert found.value == pytest.approx(np.exp(logs.mean()))
    assert (found.low, found.high) == (pytest.approx(np.exp(low)), pytest.approx(np.exp(high)))


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(11)
    trials = 600
    held = 0
    for _ in range(trials):
        launch = generator.normal(0, 0.1, 4)
        launches = [np.sort(np.exp(generator.normal(shift, 0.05, 301)) * 1e6) for shift in launch]
        found = intervals.estimate(launches, 0.5)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 1.0 <= found.high
    assert 0.93 <= held / trials <= 0.97


def test_one_launch_has_a_percentile_and_no_interval() -> None:
    found = intervals.estimate([np.arange(1.0, 8.0) * 1e6], 0.5)
    assert (found.value, found.low, found.high, found.reason) == (4.0, None, None, "one launch: no interval")


def test_failures_count_in_every_percentile() -> None:
    latencies = np.array([1e6] * 97 + [math.inf] * 3)
    assert intervals.estimate([latencies] * 2, 0.9).value == pytest.approx(1.0)
    many = np.array([1e6] * 80 + [math.inf] * 20)
    found = intervals.estimate([many] * 2, 0.9)
    assert found.value is None
    assert found.reason == "p90 is infinite: more than 0.1 of the requests failed"
