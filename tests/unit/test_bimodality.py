"""Two modes or one, on populations that are known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from loadtest.analysis import bimodality

MS = 1_000_000


def population(generator: np.random.Generator, median: float, sigma: float, count: int) -> NDArray[np.float64]:
    values: NDArray[np.float64] = generator.lognormal(np.log(median * MS), sigma, count)
    return values


@pytest.mark.parametrize("share", [0.15, 0.5, 0.85])
@pytest.mark.parametrize(("sigma", "ratio"), [(0.03, 1.25), (0.1, 1.7), (0.2, 3.0)])
def test_two_populations_are_seen_in_19_of_20_records(share: float, sigma: float, ratio: float) -> None:
    seen = 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        upper = round(2000 * share)
        values = np.concatenate(
            [population(generator, 1.0, sigma, 2000 - upper), population(generator, ratio, sigma, upper)]
        )
        found = bimodality.detect(generator.permutation(values))
        if found is not None:
            seen += 1
            assert found.share == pytest.approx(share, abs=0.03)
            assert found.lower == pytest.approx(1.0 * MS, rel=0.1)
            assert found.upper == pytest.approx(ratio * MS, rel=0.15)
    assert seen >= 57


@pytest.mark.parametrize("sigma", [0.01, 0.1, 0.5, 1.5])
@pytest.mark.parametrize("count", [200, 2000, 50_000])
def test_one_population_is_one(sigma: float, count: int) -> None:
    found = [bimodality.detect(population(np.random.default_rng(seed), 1.0, sigma, count)) for seed in range(60)]
    assert sum(one is not None for one in found) <= 3


def test_a_tail_a_queue_and_a_constant_are_no_second_mode() -> None:
    generator = np.random.default_rng(0)
    body = population(generator, 1.0, 0.05, 1900)
    assert bimodality.detect(np.concatenate([body, population(generator, 20.0, 0.2, 100)])) is None
    assert bimodality.detect(generator.exponential(MS, 5000)) is None
    assert bimodality.detect(np.full(1000, 1.0 * MS)) is None
    assert bimodality.detect(body[:100]) is None
    assert bimodality.detect(np.full(1000, np.inf)) is None
