from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from loadtest.generator.schedule import arrivals, bursts, constant, poisson, trace
from medserve.errors import BadInput
from medserve.spec import Arrivals, LoadProfile
from medserve.timing import timed_loop

WINDOW_NS = 100_000_000
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


def dispersion(offsets: NDArray[np.int64]) -> float:
    """Variance over mean of the counts in windows: 0 of even arrivals, 1 of a Poisson process (Cox & Lewis 1966)."""
    counts = np.bincount(offsets // WINDOW_NS)[:-1]
    return float(counts.var(ddof=1) / counts.mean())


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
    assert dispersion(offsets) == pytest.approx(1, abs=0.1)
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


def test_a_measurement_goes_on_for_its_requests_where_they_come_within_a_minute() -> None:
    profile = LoadProfile(name="p", mode="closed-loop", seconds=5.0, warmup_seconds=1.0, requests=400)
    assert profile.goes_on(10_000, 4.9), "its seconds come first"
    assert profile.goes_on(399, 5.0)
    assert not profile.goes_on(400, 5.0)
    assert profile.goes_on(34, 5.0), "408 in a minute at this pace"
    assert not profile.goes_on(33, 5.0), "396 in a minute at this pace: they would never come"
    assert not profile.goes_on(399, 60.0)
    assert not msgspec.structs.replace(profile, requests=0).goes_on(0, 5.0)


@pytest.mark.parametrize(
    ("rate", "seconds", "kind", "expected"),
    [
        (50.0, 20.0, "constant", 20.0),
        (50.0, 2.0, "constant", 8.0),
        (50.0, 2.0, "poisson", 8.8),
        (5.0, 2.0, "bursts", 2.0),
    ],
)
def test_a_schedule_is_as_long_as_its_requests_need(
    rate: float, seconds: float, kind: Arrivals, expected: float
) -> None:
    profile = LoadProfile(
        name="p", mode="open-loop", rate=rate, arrivals=kind, seconds=seconds, warmup_seconds=0.5, requests=400
    )
    assert profile.scheduled_seconds == pytest.approx(expected)
    sent = arrivals(profile, seed=1)
    assert sent.max() / 1e9 == pytest.approx(expected + 0.5, abs=1.0)
    assert (sent >= 0.5e9).sum() >= min(400, 0.8 * rate * seconds)
    assert msgspec.structs.replace(profile, requests=0).scheduled_seconds == seconds


def test_a_profile_gives_its_schedule_with_its_warm_up() -> None:
    profile = LoadProfile(name="open", mode="open-loop", rate=50.0, seconds=8.0, warmup_seconds=1.0)
    assert len(arrivals(profile, seed=0)) == 450
    with pytest.raises(BadInput, match="no 'rate'"):
        arrivals(LoadProfile(name="open", mode="open-loop", seconds=1.0, warmup_seconds=0.0), seed=0)


@given(rates, durations, st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_bursts_arrive_together_at_the_epochs_of_a_poisson_process(
    rate: float, seconds: float, burst: int, seed: int
) -> None:
    offsets = bursts(rate, seconds, burst, seed)
    assert offsets.dtype == np.int64
    assert np.array_equal(offsets[::burst], poisson(rate / burst, seconds, seed))
    assert (offsets.reshape(-1, burst) == offsets[::burst, None]).all()


def test_bursts_keep_the_rate_and_disperse_by_their_size() -> None:
    offsets = bursts(400, 400, 8, seed=3)
    assert len(offsets) / 400 == pytest.approx(400, rel=0.02)
    # Of a compound Poisson process with jumps of 8, the variance of a count is 8 times its mean.
    assert dispersion(offsets) == pytest.approx(8, rel=0.1)


def test_a_burst_of_nothing_is_refused() -> None:
    with pytest.raises(BadInput, match="burst of a schedule is 0"):
        bursts(10, 1, 0, seed=0)


@given(st.lists(st.floats(-1e4, 1e4), min_size=1), durations)
def test_a_trace_is_its_file_from_its_first_arrival_on(
    tmp_path_factory: pytest.TempPathFactory, times: list[float], seconds: float
) -> None:
    path = tmp_path_factory.getbasetemp() / "trace.txt"
    path.write_text("# recorded\n\n" + "".join(f"{time!r}  # arrival\n" for time in sorted(times)))
    offsets = trace(path, seconds)
    expected = np.sort(times) - min(times)
    assert offsets.dtype == np.int64
    assert offsets[0] == 0
    assert np.array_equal(offsets, np.rint(expected[expected < seconds] * 1e9).astype(np.int64))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("0\n1\n\nsoon\n", "line 4: 'soon'; expected an arrival time in seconds"),
        ("0\nnan\n", "line 2: 'nan'"),
        ("0\n-inf\n", "line 2: '-inf'"),
        ("# from a clinic\n3\n2\n", "line 3: 2 comes after 3.0; expected ascending times"),
        ("# nothing\n", "no arrival time"),
    ],
)
def test_a_file_that_is_no_trace_is_refused_by_its_line(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "trace.txt"
    path.write_text(content)
    with pytest.raises(BadInput, match=said) as caught:
        trace(path, 10)
    assert str(caught.value).startswith(str(path))


def test_a_trace_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not a readable trace"):
        trace(tmp_path / "trace.txt", 10)


def test_each_kind_of_arrivals_has_its_schedule(tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"
    path.write_text("5\n5.5\n9\n")
    asked = LoadProfile(name="open", mode="open-loop", rate=50.0, burst=5, seconds=8.0, warmup_seconds=1.0)
    kinds = {kind: arrivals(msgspec.structs.replace(asked, arrivals=kind), seed=4) for kind in ("poisson", "bursts")}
    assert np.array_equal(kinds["poisson"], poisson(50, 9, seed=4))
    assert np.array_equal(kinds["bursts"], bursts(50, 9, 5, seed=4))
    traced = msgspec.structs.replace(asked, arrivals="trace", trace=str(path), rate=None, seconds=2.0)
    assert arrivals(traced, seed=0).tolist() == [0, 500_000_000]
    for unclear in (msgspec.structs.replace(traced, rate=5.0), msgspec.structs.replace(traced, trace=None)):
        with pytest.raises(BadInput, match="give its file, and no rate"):
            arrivals(unclear, seed=0)


def test_a_timed_loop_goes_on_as_long_as_it_is_told() -> None:
    told: list[tuple[int, float]] = []

    def goes_on(calls: int, seconds: float) -> bool:
        told.append((calls, seconds))
        return calls < 50

    stamps = timed_loop(lambda _: None, 0.0, 10, goes_on=goes_on)
    assert len(stamps) == 50
    assert [calls for calls, _ in told] == list(range(10, 51))
    assert all(seconds >= 0 for _, seconds in told)
    assert len(timed_loop(lambda _: None, 0.0, 10, 20, goes_on)) == 20
