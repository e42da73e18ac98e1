"""What to choose: the front, the limits, and the best for an objective hold for whatever was measured."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.analysis import distribution, pareto
from loadtest.analysis.intervals import Interval, wilson
from loadtest.analysis.pareto import Candidate, Point, dominated


def apart(first: str, second: str) -> bool:
    """Every slower one is slower with confidence, but a rival."""
    return second != "rival"


LATENCIES = st.floats(0.01, 1000)
SHARES = st.integers(0, 200).map(lambda right: wilson(right / 200, 200))


@st.composite
def points(draw: st.DrawFn) -> list[Point]:
    found = []
    for number in range(draw(st.integers(0, 8))):
        middle, width = draw(LATENCIES), draw(st.floats(1, 2))
        latency = Interval(value=middle, low=middle / width, high=middle * width)
        found.append(Point(name=str(number), latency=latency, accuracy=draw(SHARES)))
    return found


@st.composite
def candidates(draw: st.DrawFn) -> list[Candidate]:
    found = []
    for number in range(draw(st.integers(1, 8))):
        median = draw(LATENCIES)
        bounds = {name: draw(st.one_of(st.just(math.inf), st.floats(median, 2000))) for name in ("p50", "p99")}
        found.append(Candidate(name=str(number), median=median, accuracy=draw(SHARES), bounds=bounds))
    return found


def clearly(found: list[Point]) -> pareto.Slower:
    """Slower where the intervals of two latencies do not overlap."""
    by_name = {one.name: one.latency for one in found}
    return lambda first, second: (by_name[first].high or 0) < (by_name[second].low or 0)


@given(points())
def test_the_front_is_what_nothing_surpasses_and_nothing_on_it_is_dominated(found: list[Point]) -> None:
    front, beaten = pareto.front(found), dominated(found, clearly(found))
    assert bool(front) == bool(found)
    assert not front & beaten.keys()
    on = sorted((one for one in found if one.name in front), key=lambda one: (one.latency.value, one.accuracy.value))
    assert [one.accuracy.value for one in on] == sorted(one.accuracy.value for one in on)
    for one in found:
        reached = [other.accuracy.value for other in on if other.latency.value <= one.latency.value]
        assert max(reached) >= one.accuracy.value


@given(points())
def test_what_is_dominated_is_slower_with_confidence_and_no_more_accurate(found: list[Point]) -> None:
    slower, by_name = clearly(found), {one.name: one for one in found}
    beaten = dominated(found, slower)
    for one in found:
        better = [
            other.name for other in found if slower(other.name, one.name) and other.accuracy.value >= one.accuracy.value
        ]
        assert (one.name in beaten) == bool(better)
        assert not better or by_name[beaten[one.name]].latency.value == min(by_name[n].latency.value for n in better)


@given(candidates(), st.floats(0.01, 3000))
def test_the_best_holds_the_limit_and_no_other_that_does_is_better_with_confidence(
    found: list[Candidate], limit: float
) -> None:
    by_name = {one.name: one for one in found}
    holding = [one for one in found if one.bounds["p99"] < limit]
    best = pareto.best(found, "p99", limit, apart)
    if not holding:
        assert best.best is None
        assert best.alike == ()
        return
    assert best.best is not None
    chosen = by_name[best.best]
    assert chosen in holding
    assert all((chosen.accuracy.high or 0) >= (one.accuracy.low or 0) for one in holding)
    assert {by_name[name] in holding for name in best.alike} <= {True}
    assert [by_name[name].median for name in (best.best, *best.alike)] == sorted(
        by_name[name].median for name in (best.best, *best.alike)
    )
    # A candidate that holds the limit and is faster but was not chosen is less accurate, with 95 % confidence.
    for one in holding:
        if one.median < chosen.median:
            assert any((one.accuracy.high or 0) < (other.accuracy.low or 0) for other in holding)


@given(candidates(), st.floats(0.01, 3000), st.floats(1, 10))
def test_a_wider_limit_never_costs_accuracy(found: list[Candidate], limit: float, factor: float) -> None:
    by_name = {one.name: one for one in found}
    near, far = pareto.best(found, "p99", limit, apart), pareto.best(found, "p99", limit * factor, apart)
    if near.best is not None:
        assert far.best is not None
        assert (by_name[far.best].accuracy.high or 0) >= (by_name[near.best].accuracy.low or 0)


@given(st.lists(st.one_of(st.just(math.inf), LATENCIES), max_size=8))
def test_limits_are_round_and_span_the_bounds(bounds: list[float]) -> None:
    found = pareto.limits(bounds)
    known = [one for one in bounds if math.isfinite(one)]
    assert bool(found) == bool(known)
    assert found == sorted(set(found))
    for limit in found:
        assert float(f"{limit:.0e}"[0]) in pareto.STEPS
    if known:
        assert found[0] > min(known)
        assert found[-1] > max(known)
        assert all(limit <= max(known) for limit in found[:-1])
        assert found[0] <= min(known) * 2.5 * (1 + 1e-9)


def test_an_objective_is_about_what_every_sample_carries() -> None:
    one = Candidate(name="a", median=1.0, accuracy=wilson(0.9, 100), bounds={"p50": 1.1, "p90": 1.5, "p99": math.inf})
    other = Candidate(name="b", median=1.0, accuracy=wilson(0.9, 100), bounds={"p50": 1.1, "p90": 1.5})
    assert pareto.supported_percentile([one], ("p99", "p90", "p50")) == "p99"
    assert pareto.supported_percentile([one, other], ("p99", "p90", "p50")) == "p90"
    assert pareto.supported_percentile([other], ("p99",)) is None


def test_of_equals_the_faster_and_of_better_ones_the_better() -> None:
    def made(name: str, median: float, right: int) -> Candidate:
        return Candidate(name=name, median=median, accuracy=wilson(right / 1000, 1000), bounds={"p99": 2 * median})

    small, rival, large = made("small", 1.0, 900), made("rival", 1.5, 905), made("large", 9.0, 980)
    assert pareto.best([large, rival, small], "p99", 5.0, apart).best == "small"
    assert pareto.best([large, rival, small], "p99", 5.0, apart).alike == ("rival",)
    assert pareto.best([large, rival, small], "p99", 20.0, apart).best == "large"
    assert pareto.best([large, rival, small], "p99", 1.0, apart).best is None


@given(st.lists(st.one_of(st.just(math.inf), st.floats(1.0, 1e9)), max_size=600))
def test_a_curve_is_a_thinning_of_the_empirical_distribution(values: list[float]) -> None:
    ordered = np.sort(np.array(values, np.float64))
    found = distribution.curve(ordered)
    assert len(found.milliseconds) == len(found.shares) <= 200
    assert list(found.milliseconds) == sorted(found.milliseconds)
    assert list(found.shares) == sorted(found.shares, reverse=True)
    assert all(map(math.isfinite, found.milliseconds))
    for waited, share in zip(found.milliseconds, found.shares, strict=True):
        longer = ordered[round((1 - share) * len(ordered))]
        assert longer / 1e6 == waited
        assert 1 / len(ordered) - 1e-12 <= share <= 1


def test_a_curve_of_many_requests_is_short_and_reaches_its_last_one() -> None:
    found = distribution.curve(np.arange(1.0, 1_000_001.0) * 1e6)
    assert len(found.shares) < 200
    assert (found.milliseconds[0], found.shares[0]) == (1.0, 1.0)
    assert (found.milliseconds[-1], found.shares[-1]) == (1_000_000.0, pytest.approx(1e-6))
    failed = distribution.curve(np.array([1e6, 2e6, math.inf, math.inf]))
    assert failed.shares[-1] == 0.75
