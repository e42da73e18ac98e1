"""Verdicts against simulated campaigns whose truth is known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.analysis.compare import MARGIN, Ratio, between_runs, drifting, judge, ratio

positive = st.floats(0.01, 1e4)


def blocks(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


def test_a_ratio_is_the_geometric_mean_over_blocks_with_students_interval() -> None:
    found = ratio(blocks(1.0, 2.0, 4.0), blocks(2.0, 4.4, 7.6))
    logs = np.log([2.0, 2.2, 1.9])
    half = 4.302652729911275 * logs.std(ddof=1) / math.sqrt(3)
    assert found.value == pytest.approx(math.exp(logs.mean()))
    assert (found.low, found.high) == pytest.approx((math.exp(logs.mean() - half), math.exp(logs.mean() + half)))
    assert found.blocks == 3


def test_drift_that_both_share_cancels() -> None:
    drift = [1.0, 1.7, 0.6]
    found = ratio(blocks(*drift), blocks(*(1.5 * one for one in drift)))
    assert found.low == pytest.approx(1.5, rel=1e-6)
    assert found.high == pytest.approx(1.5, rel=1e-6)


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ({0: 1.0}, {1: 1.0}, "no block has a launch of both"),
        ({0: 1.0, 1: math.inf}, {0: 1.0, 1: 1.0}, "infinite"),
        ({0: 1.0, 1: 2.0}, {1: 1.0, 2: 1.0}, "one block: no interval"),
    ],
)
def test_what_has_no_interval_has_a_reason_and_no_verdict(
    first: dict[int, float], second: dict[int, float], reason: str
) -> None:
    found = ratio(first, second)
    assert reason in (found.reason or "")
    (judged,) = judge([found])
    assert judged.verdict in ("not comparable", "undecided")


@given(st.lists(st.tuples(positive, positive), min_size=2, max_size=8))
def test_the_other_way_round_is_the_reciprocal(pairs: list[tuple[float, float]]) -> None:
    first, second = (dict(enumerate(side)) for side in zip(*pairs, strict=True))
    there, back = ratio(first, second), ratio(second, first)
    assert there.value is not None
    assert back.value is not None
    assert there.value * back.value == pytest.approx(1.0)
    assert there.p_differs == pytest.approx(back.p_differs)
    assert there.p_equivalent == pytest.approx(back.p_equivalent, abs=1e-9)
    swap = {"faster": "slower", "slower": "faster"}
    (one,), (other,) = judge([there]), judge([back])
    assert one.verdict == swap.get(other.verdict, other.verdict)


@pytest.mark.parametrize(
    ("true_ratio", "noise", "verdict"), [(0.5, 0.02, "faster"), (2, 0.02, "slower"), (1, 0.002, "equivalent")]
)
def test_what_is_clear_is_decided(true_ratio: float, noise: float, verdict: str) -> None:
    generator = np.random.default_rng(1)
    made = [_campaign(generator, true_ratio, noise, 5) for _ in range(12)]
    assert {one.verdict for one in judge(made)} == {verdict}


def test_what_is_noisy_is_undecided_and_says_how_many_more_launches_it_needs() -> None:
    (judged,) = judge([ratio(blocks(1.0, 1.0, 1.0), blocks(1.0, 1.3, 1.1))])
    assert judged.verdict == "undecided"
    assert judged.more is not None
    assert 2 <= judged.more <= 30
    (closer,) = judge([ratio(blocks(1.0, 1.0, 1.0), blocks(1.1, 1.3, 1.2))])
    assert closer.more is not None
    assert closer.more < judged.more


@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.sampled_from([0.002, 0.02, 0.1]))
def test_the_interval_beside_a_verdict_is_the_one_that_decides(seed: int, launches: int, noise: float) -> None:
    generator = np.random.default_rng(seed)
    truths = [1.0, 1.0, 1.02, 1.05, 0.8, 1.3]
    for found in judge([_campaign(generator, truth, noise, launches) for truth in truths]):
        low, high = found.ratio.low, found.ratio.high
        assert low is not None
        assert high is not None
        assert 0.9 <= found.ratio.level < 1
        inside = low >= 1 / (1 + MARGIN) and high <= 1 + MARGIN
        decided = {"faster": high < 1, "slower": low > 1, "equivalent": inside, "undecided": low <= 1 <= high}
        assert decided[found.verdict], found


@pytest.mark.parametrize("launches", [3, 5])
def test_at_most_one_campaign_in_twenty_holds_a_wrong_verdict(launches: int) -> None:
    """Twelve pairs a campaign: half equal but for noise, a quarter at the margin, a quarter 30 % apart."""
    generator = np.random.default_rng(launches)
    truths = [1.0] * 6 + [1 + MARGIN * 1.001] * 3 + [1.3] * 3
    wrong = 0
    for _ in range(400):
        verdicts = judge([_campaign(generator, truth, 0.03, launches) for truth in truths])
        pairs = list(zip(verdicts, truths, strict=True))
        wrong += any(
            (one.verdict == "faster")
            or (one.verdict == "slower" and truth == 1.0)
            or (one.verdict == "equivalent" and truth > 1 + MARGIN)
            for one, truth in pairs
        )
    assert wrong <= 0.05 * 400


def test_intervals_hold_the_truth_in_95_of_100() -> None:
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(1000):
        found = _campaign(generator, 1.2, 0.05, 3)
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= 1.2 <= found.high
    assert 930 <= inside <= 970


def test_a_drift_is_one_way_all_the_time() -> None:
    assert drifting([1.0, 1.1, 1.2, 1.5, 1.6])
    assert drifting([3.0, 2.0, 1.9, 1.0, 0.5])
    assert not drifting([1.0, 1.1, 1.05, 1.5, 1.6])
    assert not drifting([1.0, 1.1, 1.2, 1.3])
    assert not drifting([1.0, 1.1, 1.2, 1.3, math.inf])


def _campaign(generator: np.random.Generator, true_ratio: float, noise: float, launches: int) -> Ratio:
    drift = np.exp(generator.normal(0, 0.3, launches))
    first = drift * np.exp(generator.normal(0, noise, launches))
    second = drift * true_ratio * np.exp(generator.normal(0, noise, launches))
    return ratio(blocks(*first.tolist()), blocks(*second.tolist()))


def test_a_run_is_judged_by_the_spread_between_the_runs_before_it() -> None:
    """Launches of a run are alike: by them alone the new run would be far away from the others."""
    from scipy import stats

    before, now = [[1.0, 1.01], [1.2, 1.21], [0.9, 0.91], [1.1, 1.11], [1.0, 1.02]], [1.15, 1.16]
    found = between_runs(before, now)
    means = [np.log(run).mean() for run in before]
    half = stats.t.ppf(0.975, 4) * np.std(means, ddof=1) * math.sqrt(1 + 1 / 5)
    centre = np.log(now).mean() - np.mean(means)
    assert (found.value, found.low, found.high) == pytest.approx([math.exp(centre + side) for side in (0, -half, half)])
    assert judge([found])[0].verdict == "undecided"
    assert judge([between_runs(before, [3.0, 3.0])])[0].verdict == "slower"


def test_with_fewer_runs_the_spread_between_them_is_unknown() -> None:
    found = between_runs([[1.0, 1.1]] * 4, [2.0])
    assert (found.low, found.reason) == (None, "4 of 5 runs that tell the spread between runs")
    assert found.value == pytest.approx(2.0 / math.sqrt(1.1))
    assert between_runs([], [2.0]).value is None
    assert between_runs([[1.0], []], [2.0]).value is None


def test_a_small_difference_is_equivalent_only_where_that_holds_for_all_pairs_together() -> None:
    generator = np.random.default_rng(3)
    clear = [_campaign(generator, 1.3, 0.001, 5) for _ in range(20)]
    barely = ratio(blocks(1.0, 1.0, 1.0, 1.0), blocks(1.035, 1.045, 1.035, 1.045))
    assert barely.p_equivalent < 0.05
    assert judge([barely])[0].verdict == "equivalent" or barely.p_equivalent > 0.025
    assert judge([*clear, barely, *([ratio(blocks(1, 1, 1, 1), blocks(1.02, 1.2, 0.9, 1.1))] * 40)])[20].verdict in (
        "undecided",
        "slower",
    )
