"""The response over resolution, from known responses."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.analysis.intervals import Interval, log_t_interval, wilson
from loadtest.analysis.pareto import Point, dominated
from loadtest.analysis.scaling import crossover, response

SIZES = (28, 64, 128, 224)


def made(
    fixed: float, pixel_ns: float, noise: float = 0.0, blocks: int = 3, seed: int = 0
) -> dict[int, dict[int, float]]:
    generator = np.random.default_rng(seed)
    return {
        block: {size: (fixed + pixel_ns * 1e-6 * size**2) * math.exp(generator.normal(0, noise)) for size in SIZES}
        for block in range(blocks)
    }


@given(st.floats(0.01, 10), st.floats(1, 1000))
def test_a_line_is_found_again(fixed: float, pixel_ns: float) -> None:
    found = response(made(fixed, pixel_ns))
    assert found is not None
    assert found.fixed_ms.value == pytest.approx(fixed, rel=1e-6)
    assert found.pixel_ns.value == pytest.approx(pixel_ns, rel=1e-6)
    assert found.linear
    assert 0 < found.exponent.value < 1


def test_intervals_of_noisy_responses_hold_the_truth() -> None:
    inside = 0
    for seed in range(300):
        found = response(made(0.2, 30, noise=0.03, blocks=5, seed=seed))
        assert found is not None
        assert found.pixel_ns.low is not None
        assert found.pixel_ns.high is not None
        inside += found.pixel_ns.low <= 30 <= found.pixel_ns.high
    assert 0.92 * 300 <= inside <= 0.98 * 300


def test_what_is_no_line_is_said_to_be_none() -> None:
    found = response({0: {28: 1.0, 64: 1.0, 128: 1.0, 224: 20.0}})
    assert found is not None
    assert not found.linear
    assert found.fixed_ms.low is None


def test_a_proportional_cost_has_the_exponent_one_and_a_constant_one_zero() -> None:
    for fixed, pixel_ns, exponent in ((0.0, 10.0, 1.0), (1.0, 0.0, 0.0)):
        found = response(made(fixed, pixel_ns))
        assert found is not None
        assert found.exponent.value == pytest.approx(exponent, abs=1e-9)


@pytest.mark.parametrize("blocks", [{}, {0: {28: 1.0}}, {0: {28: 1.0, 64: math.inf}}, {0: {28: 1.0}, 1: {64: 1.0}}])
def test_without_two_sizes_in_a_block_there_is_no_response(blocks: dict[int, dict[int, float]]) -> None:
    assert response(blocks) is None


def test_two_deployments_cross_where_their_lines_do() -> None:
    first, second = made(0.1, 100), made(1.0, 40)
    found = crossover(first, second)
    assert found is not None
    truth = math.sqrt((1.0 - 0.1) / (60e-6))
    assert found.value == pytest.approx(truth, rel=0.05)
    back = crossover(second, first)
    assert back is not None
    assert back.value == pytest.approx(found.value)
    assert crossover(first, made(0.2, 200)) is None
    assert crossover(first, {**second, 2: first[2]}) is None


def test_wilsons_interval_is_the_textbooks() -> None:
    found = wilson(0.5, 100)
    assert (found.low, found.high) == pytest.approx((0.4038315, 0.5961685), abs=1e-6)
    assert wilson(1.0, 50).high == 1.0
    assert wilson(0.0, 50).low == pytest.approx(0.0, abs=1e-12)


def test_a_deployment_is_dominated_by_one_that_is_faster_with_confidence_and_as_accurate() -> None:
    def point(name: str, latency: float, accuracy: float) -> Point:
        return Point(name=name, latency=Interval(value=latency), accuracy=Interval(value=accuracy))

    points = [
        point("fast", 1.0, 0.96),
        point("as accurate, slower", 2.0, 0.96),
        point("more accurate, slower", 2.0, 0.97),
        point("less accurate, slower", 3.0, 0.85),
        point("less accurate, undecided", 1.1, 0.85),
    ]
    found = dominated(points, lambda first, second: first == "fast" and second != "less accurate, undecided")
    assert found == {"as accurate, slower": "fast", "less accurate, slower": "fast"}
    assert dominated(points, lambda first, second: False) == {}


def test_a_geometric_mean_lies_in_its_interval() -> None:
    found = log_t_interval([1.0, 4.0])
    assert found.value == pytest.approx(2.0)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 2.0 < found.high
