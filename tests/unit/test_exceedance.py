"""The share above a limit and its interval: exact on counts, honest on independent and on correlated requests."""

from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from loadtest.analysis.intervals import least_samples
from loadtest.analysis.within_launch import autocorrelation_time, clopper_pearson, exceedance


@given(st.integers(1, 3000), st.floats(0, 1))
def test_the_interval_of_whole_counts_is_the_exact_one(n: int, share: float) -> None:
    count = round(share * n)
    expected = binomtest(count, n).proportion_ci(0.95, "exact")
    low, high = clopper_pearson(count, n)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert low <= count / n <= high


@given(st.floats(0.001, 1), st.floats(1, 1e5), st.floats(1.01, 50))
def test_fewer_effective_requests_say_less(share: float, n: float, factor: float) -> None:
    low, high = clopper_pearson(share * n, n)
    wide_low, wide_high = clopper_pearson(share * n / factor, n / factor)
    assert wide_low <= low + 1e-9
    assert wide_high >= high - 1e-9


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_the_autocorrelation_time_of_a_markov_chain_is_the_known_one(correlation: float) -> None:
    generator = np.random.default_rng(1)
    # A chain that keeps its state with probability `correlation` and else draws it anew.
    count = 200_000
    drawn = generator.random(count) < 0.2
    kept = generator.random(count) < correlation
    origin = np.maximum.accumulate(np.where(kept, 0, np.arange(count)))
    series = drawn[origin]
    assert autocorrelation_time(series) == pytest.approx((1 + correlation) / (1 - correlation), rel=0.15)


def test_alternation_is_not_credited_and_a_constant_series_is_independent() -> None:
    assert autocorrelation_time(np.arange(1000) % 2 == 0) == 1.0
    assert autocorrelation_time(np.zeros(10, np.bool_)) == 1.0
    assert autocorrelation_time(np.ones(1, np.bool_)) == 1.0


@given(st.lists(st.booleans(), min_size=1, max_size=300))
def test_the_autocorrelation_time_of_anything_lies_between_one_and_its_length(values: list[bool]) -> None:
    assert 1.0 <= autocorrelation_time(np.array(values)) <= len(values)


@pytest.mark.parametrize(("correlation", "p"), [(0.0, 0.99), (0.0, 0.5), (0.8, 0.9), (0.95, 0.9)])
def test_the_interval_covers_the_true_share_as_often_as_it_says(correlation: float, p: float) -> None:
    """Latencies whose neighbours are alike: normal AR(1) series, judged at their true percentile."""
    generator = np.random.default_rng(7)
    repeats, count = 300, 4000
    covered = 0
    for _ in range(repeats):
        noise = generator.normal(size=count) * np.sqrt(1 - correlation**2)
        series = np.empty(count)
        series[0] = generator.normal()
        for place in range(1, count):
            series[place] = correlation * series[place - 1] + noise[place]
        seen = exceedance(series, float(norm.ppf(p)), p)
        covered += seen.low <= 1 - p <= seen.high
    # Three standard deviations of the count below 95 %.
    assert covered >= repeats * 0.95 - 3 * (repeats * 0.95 * 0.05) ** 0.5


def test_an_interval_that_ignored_correlation_would_cover_too_seldom() -> None:
    generator = np.random.default_rng(7)
    slow = np.repeat(generator.random(100) < 0.1, 40)
    seen = exceedance(np.where(slow, 2.0, 1.0), 1.5, 0.9)
    assert seen.effective == pytest.approx(100, rel=0.6)
    naive = clopper_pearson(float(slow.sum()), len(slow))
    assert seen.high - seen.low > 3 * (naive[1] - naive[0])


@pytest.mark.parametrize("p", [0.5, 0.9, 0.99, 0.999])
def test_without_an_exceedance_it_holds_from_the_least_samples_on(p: float) -> None:
    least = least_samples(p)
    assert exceedance(np.ones(least), 2.0, p).verdict == "holds"
    assert exceedance(np.ones(least - 1), 2.0, p).verdict == "undecided"


def test_failed_requests_exceed_every_limit_and_none_at_all_decides_nothing() -> None:
    assert exceedance(np.full(10, inf), 1e12, 0.9).verdict == "fails"
    assert exceedance(np.zeros(0), 1.0, 0.9).verdict == "undecided"


def test_a_run_whose_slow_half_lies_below_the_limit_is_not_taken_for_independent() -> None:
    """No exceedance, and yet half of the run was another run: it counts as few requests."""
    seen = exceedance(np.repeat([1.0, 3.0], 500), 5.0, 0.5)
    assert seen.effective < 10
    assert seen.verdict == "undecided"
