"""Warm-up that is found: known changes are seen where they are, and noise is none."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from loadtest import samples
from loadtest.analysis import steady
from loadtest.results import latency

MS = 1_000_000


def noise(count: int, seed: int = 0, sigma: float = 0.1) -> NDArray[np.float64]:
    values: NDArray[np.float64] = np.random.default_rng(seed).lognormal(np.log(MS), sigma, count)
    return values


@pytest.mark.parametrize("sigma", [0.02, 0.3, 1.0])
@pytest.mark.parametrize("count", [40, 60, 200, 3000])
def test_noise_alone_is_no_change(count: int, sigma: float) -> None:
    found = [steady.find(noise(count, seed, sigma)) for seed in range(60)]
    assert sum(not one.steady for one in found) <= 3
    assert sum(one.start > 0 for one in found) <= 3


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.floats(0.05, 0.17), st.floats(1.5, 50), st.sampled_from([400, 3000]))
def test_a_warm_up_is_found_where_it_ends(seed: int, share: float, factor: float, count: int) -> None:
    values = noise(count, seed)
    ends = round(count * share)
    values[:ends] *= factor
    found = steady.find(values)
    assert found.steady
    assert found.reason is None
    assert abs(found.start - ends) <= max(0.03 * count, 10)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.floats(0.05, 0.5), st.floats(1.5, 50), st.booleans())
def test_a_longer_or_a_faster_beginning_stays_in_the_record(
    seed: int, share: float, factor: float, slower: bool
) -> None:
    values = noise(3000, seed)
    ends = round(3000 * (max(share, 0.23) if slower else share))
    values[:ends] *= factor if slower else 1 / factor
    found = steady.find(values)
    assert found.start == 0
    assert not (slower and found.steady)


def queue(services: NDArray[np.float64], gaps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Latencies of one server: what is left of the request before, and the own service (Lindley's recursion)."""
    latencies, left = np.empty(len(services)), 0.0
    for index, service in enumerate(services):
        left = max(0.0, left - gaps[index]) + service
        latencies[index] = left
    return latencies


def test_a_server_of_mixed_service_times_has_no_warm_up() -> None:
    """2 ms (90 %), 8 ms (9 %) and 40 ms (1 %), 50 requests per second by Poisson's process."""
    found = []
    for seed in range(60):
        generator = np.random.default_rng(seed)
        services = generator.choice([2.0, 8.0, 40.0], 1000, p=[0.9, 0.09, 0.01]) * MS
        found.append(steady.find(queue(services, generator.exponential(20 * MS, 1000))))
    assert sum(one.start > 0 for one in found) <= 2


@pytest.mark.parametrize("every", [3, 6])
def test_a_server_that_stalls_again_and_again_has_no_warm_up(every: int) -> None:
    """It stalls for a second every few seconds; 100 requests per second for 25 s, from any moment on."""
    due = np.arange(2500) * 0.01
    for seed in range(60):
        generator = np.random.default_rng(seed)
        into = (due + generator.uniform(0, every)) % every
        values = generator.lognormal(np.log(MS), 0.1, 2500) + np.where(into < 1.0, 1.0 - into, 0.0) * 1e9
        assert steady.find(values, (due * 1e9).astype(np.int64)).start == 0


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.floats(0.55, 0.8), st.floats(1.5, 50), st.booleans())
def test_a_change_in_the_second_half_denies_the_steady_state(
    seed: int, share: float, factor: float, slower: bool
) -> None:
    values = noise(2000, seed)
    values[round(2000 * share) :] *= factor if slower else 1 / factor
    found = steady.find(values)
    assert not found.steady
    assert ("rose" if slower else "fell") in str(found.reason)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.floats(0.0, 0.9), st.floats(2, 1000))
def test_a_stall_is_no_change_of_the_median(seed: int, place: float, factor: float) -> None:
    values = noise(3000, seed)
    first = round(3000 * place)
    # A queue that drains: 300 of 3,000 requests at 200 a second wait for up to a second and a half.
    values[first : first + 300] *= np.linspace(factor, 1, 300)[: len(values[first : first + 300])]
    assert steady.find(values).steady


def test_the_reason_says_what_changed_when_and_from_what_to_what() -> None:
    values = noise(3000)
    values[2050:] *= 12.3
    due = np.arange(3000) * 2 * MS
    assert steady.find(values, due).reason == "no steady state: median rose from 0.998 ms to 12.2 ms 4.1 s in"
    assert "at request 2,050 of 3,000" in str(steady.find(values).reason)


@pytest.mark.parametrize("factor", [3, 10, 100])
@pytest.mark.parametrize("slow_first", [False, True])
def test_a_closed_loop_sends_little_while_it_is_slow_and_is_judged_by_time_too(factor: int, slow_first: bool) -> None:
    """Slow for 60 % of the time, in which it sends a tenth of its requests or less."""
    slow, fast = noise(round(600 / factor), 1) * factor, noise(400, 2)
    values = np.concatenate([slow, fast] if slow_first else [fast, slow])
    due = np.cumsum(np.concatenate([[0.0], values[:-1]])).astype(np.int64)
    found = steady.find(values, due)
    assert not found.steady
    assert ("fell" if slow_first else "rose") in str(found.reason)


def test_of_several_changes_the_largest_is_told() -> None:
    values = np.concatenate([noise(1800, 1), noise(600, 2) * 20, noise(600, 3) * 10])
    assert "at request 1,800" in str(steady.find(values).reason)


def test_a_queue_that_only_grows_is_no_steady_state() -> None:
    assert not steady.find(noise(3000) * np.linspace(1, 100, 3000)).steady


def test_requests_that_fail_from_some_moment_on_are_no_steady_state() -> None:
    values = noise(1000)
    values[400:] = np.inf
    assert "to failures at request 400" in str(steady.find(values).reason)
    assert "failed throughout" in str(steady.find(np.full(100, np.inf)).reason)


def test_of_too_few_nothing_is_told() -> None:
    found = steady.find(noise(39))
    assert (found.start, found.steady) == (0, True)
    assert "too few" in str(found.reason)


def record(latencies: NDArray[np.float64], warm: int = 0, **other: Any) -> Any:
    sent = np.arange(len(latencies)) * 100 * MS
    columns = {"sent_ns": sent, "done_ns": sent + latencies.astype(np.int64), "status": [200] * len(sent)}
    columns |= {"batch": [1] * len(sent), "warmup": np.arange(len(sent)) < warm}
    return samples.as_table(columns | other)


def test_what_is_found_only_lengthens_the_assumed_warm_up() -> None:
    values = noise(1000)
    values[:180] *= 5
    table, found = latency.mark_warmup(record(values, warm=50))
    marked = int(table["warmup"].to_numpy().sum())
    assert found.steady
    assert marked == 50 + found.start
    assert 175 <= marked <= 190
    calm, found = latency.mark_warmup(record(noise(1000), warm=50))
    assert calm["warmup"].to_numpy().sum() == 50
    assert found.start == 0


def test_rows_in_another_order_are_marked_by_when_they_were_due() -> None:
    values = noise(1000)
    values[:300] *= 5
    order = np.random.default_rng(1).permutation(1000)
    straight, _ = latency.mark_warmup(record(values))
    mixed, _ = latency.mark_warmup(record(values).take(order))
    assert mixed["warmup"].to_numpy().tolist() == straight["warmup"].to_numpy()[order].tolist()


@pytest.mark.parametrize("factor", [0.8, 1.2])
def test_a_short_beginning_at_another_level_is_no_lack_of_a_steady_state(factor: float) -> None:
    """As a stall of that length is none anywhere else; one that is slower is warm-up."""
    values = noise(3000, sigma=0.02)
    values[:60] *= factor
    found = steady.find(values)
    assert found.steady
    assert found.start == (0 if factor < 1 else 60)


def test_a_cell_is_not_steady_where_all_its_launches_change_in_one_direction() -> None:
    def launch(rises: bool | None) -> steady.Steady:
        return steady.Steady(start=0, steady=rises is None, reason=None if rises is None else "changed", rises=rises)

    untold = steady.Steady(start=0, steady=True, reason="too few requests")
    up, down, calm = launch(True), launch(False), launch(None)
    assert steady.of_launches([up, up, up]) is False
    assert steady.of_launches([down, down]) is False
    assert steady.of_launches([up, untold]) is False
    assert steady.of_launches([up, down, up]) is True
    assert steady.of_launches([up, up, calm]) is True
    assert steady.of_launches([untold, untold]) is None


@given(st.floats(0.4, 1.0), st.integers(0, 2**32 - 1))
def test_where_many_fail_from_first_to_last_there_is_a_reason(share: float, seed: int) -> None:
    values = noise(1000)
    values[np.random.default_rng(seed).random(1000) < share] = np.inf
    found = steady.find(values)
    assert found.steady or str(found.reason).startswith("no steady state: ")
    assert not found.steady or share < 0.6
