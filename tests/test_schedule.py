import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.schedule import arrivals, constant, poisson
from medserve.errors import BadInput
from medserve.spec import LoadProfile

rates = st.floats(0.1, 2000)
durations = st.floats(0.05, 20)


@given(rates, durations)
def test_constant_arrivals_are_even_start_at_zero_and_fit(rate: float, seconds: float) -> None:
    offsets = constant(rate, seconds)
    assert offsets.dtype == np.int64
    assert offsets[0] == 0
    assert offsets[-1] < seconds * 1e9
    assert abs(len(offsets) - rate * seconds) <= 1
    # Rounding is of each arrival, not of the gap: the last is as near to its place as the first.
    assert np.abs(offsets - np.arange(len(offsets)) * 1e9 / rate).max() <= 1


@given(rates, durations, st.integers(0, 2**32 - 1))
def test_poisson_arrivals_ascend_fit_and_are_given_by_the_seed(rate: float, seconds: float, seed: int) -> None:
    offsets = poisson(rate, seconds, seed)
    assert offsets.dtype == np.int64
    assert (np.diff(offsets) >= 0).all()
    assert ((offsets >= 0) & (offsets <= seconds * 1e9)).all()
    assert np.array_equal(offsets, poisson(rate, seconds, seed))


def test_poisson_arrivals_have_the_rate_and_the_dispersion_of_a_poisson_process() -> None:
    offsets = poisson(500, 400, seed=3)
    assert len(offsets) / 400 == pytest.approx(500, rel=0.01)
    counts = np.bincount(offsets // 100_000_000, minlength=4000)
    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.1)
    gaps = np.diff(offsets)
    assert gaps.std() / gaps.mean() == pytest.approx(1, abs=0.02)


def test_other_seeds_give_other_schedules() -> None:
    assert not np.array_equal(poisson(100, 2, seed=1)[:50], poisson(100, 2, seed=2)[:50])


@pytest.mark.parametrize(("rate", "seconds"), [(0, 1), (-1, 1), (10, 0), (float("nan"), 1), (float("inf"), 1)])
def test_a_schedule_of_nonsense_is_refused(rate: float, seconds: float) -> None:
    with pytest.raises(BadInput, match="expected a positive number"):
        constant(rate, seconds)
    with pytest.raises(BadInput, match="expected a positive number"):
        poisson(rate, seconds, seed=0)


def test_a_profile_gives_its_schedule_with_its_warm_up() -> None:
    profile = LoadProfile(name="open", mode="open-loop", rate=50.0, seconds=8.0, warmup_seconds=1.0)
    assert len(arrivals(profile, seed=0)) == 450
    with pytest.raises(BadInput, match="no 'rate'"):
        arrivals(LoadProfile(name="open", mode="open-loop", seconds=1.0, warmup_seconds=0.0), seed=0)
