"""Definitions of latency, the saturation point, the cache audit: pure functions against what is known of them."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest import samples
from loadtest.analysis import within_launch
from loadtest.analysis.scaling import saturation_point
from loadtest.results import latency
from medserve.errors import BadInput

MS = 1_000_000


def record(**columns: Any) -> Any:
    count = len(columns["done_ns"])
    given = {"status": [200] * count, "batch": [1] * count, "warmup": [False] * count}
    return samples.as_table(given | columns)


def served(due: np.ndarray, service: np.ndarray) -> np.ndarray:
    """When one server after the other answers requests of an open loop."""
    done, free = [], 0
    for at, takes in zip(due.tolist(), service.tolist(), strict=True):
        free = max(free, at) + takes
        done.append(free)
    return np.array(done)


def test_the_definitions_differ_by_waiting_in_the_client_and_by_omitted_requests() -> None:
    due = np.arange(1000) * 10 * MS
    service = np.full(1000, 4 * MS)
    service[500] = 1000 * MS
    done = served(due, service)
    table = record(intended_ns=due, sent_ns=due + MS // 2, done_ns=done + MS // 2)
    intended, sent, closed = (
        np.sort(of(table)) for of in (latency.from_intended_start, latency.service_time, latency.uncorrected)
    )
    assert intended.max() == pytest.approx(1000.5 * MS)
    assert (intended - sent).tolist() == [MS / 2] * 1000
    # The stall made 166 wait for longer than 4 ms; a closed loop tells of it once, and then of the queue's end.
    assert (intended > 5 * MS).sum() > 160
    assert len(closed) < 1000 - 90
    assert closed[-1] == 1000 * MS
    assert np.quantile(closed, 0.9) < 5 * MS < np.quantile(intended, 0.9)


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 200), st.booleans()), min_size=1, max_size=60),
    st.randoms(use_true_random=False),
)
def test_a_closed_loop_takes_the_first_request_that_is_due_after_its_answer(
    steps: list[tuple[int, int, bool]], random: Any
) -> None:
    due = np.cumsum([gap for gap, _, _ in steps])
    rows = list(zip(due.tolist(), [took for _, took, _ in steps], [good for _, _, good in steps], strict=True))
    expected, free = [], -math.inf
    for at, took, good in rows:
        if at >= free:
            expected.append(float(took) if good else math.inf)
            free = at + took
    # Requests that are due together may be taken in any order, so only those at times of their own are mixed.
    if len(set(due.tolist())) == len(rows):
        random.shuffle(rows)
    at, took, good = zip(*rows, strict=True)
    done = [start + length for start, length in zip(at, took, strict=True)]
    table = record(intended_ns=at, sent_ns=at, done_ns=done, status=[200 if one else 500 for one in good])
    assert latency.uncorrected(table).tolist() == expected


def test_a_walk_goes_on_over_the_blocks_that_it_is_cut_into(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    due = np.cumsum(rng.integers(1, 100, 1000))
    table = record(intended_ns=due, sent_ns=due, done_ns=due + rng.integers(1, 700, 1000))
    whole = latency.uncorrected(table)
    monkeypatch.setattr(latency, "BLOCK", 7)
    assert latency.uncorrected(table).tolist() == whole.tolist()


def test_what_failed_is_infinite_by_every_ruler_even_without_a_sending() -> None:
    table = record(
        intended_ns=[0, 10, 20],
        sent_ns=[1, None, 21],
        done_ns=[5, 15, 25],
        status=[200, 0, 200],
        wrong=[None, None, True],
    )
    for ruler in (latency.from_intended_start, latency.service_time, latency.uncorrected):
        assert np.isinf(ruler(table)).tolist() == [False, True, True]
    assert latency.send_lag(table).tolist() == [1, 1]


@given(st.permutations([1, 2, 4, 8, 16]))
def test_the_saturation_point_is_where_the_power_peaks(order: list[int]) -> None:
    # One server of 10 ms with 10 ms elsewhere: two users fill it, and more only wait (asymptotes of Denning & Buzen).
    steps = [(n, min(n / 20, 1 / 10) * 1e3, max(20.0, n * 10.0)) for n in order]
    assert saturation_point(steps) == 2
    assert saturation_point((n, 10.0, 1.0) for n in order) == 1


def test_steps_without_a_latency_or_throughput_are_left_out() -> None:
    assert saturation_point([]) is None
    assert saturation_point([(1, 10.0, None), (2, None, 1.0), (4, 5.0, 1.0), (8, 0.0, 1.0)]) == 4


def of_pairs(first: np.ndarray, second: np.ndarray, **other: Any) -> Any:
    took = np.stack([first, second], axis=1).reshape(-1).astype(np.int64)
    sent = np.cumsum(np.concatenate([[0], took[:-1]]))
    return latency.service_time(record(sent_ns=sent, done_ns=sent + took, **other))


def test_the_audit_tells_a_cache_from_noise() -> None:
    rng = np.random.default_rng(3)
    first = rng.lognormal(math.log(5 * MS), 0.2, 32)
    found = within_launch.audit(of_pairs(first, first * rng.lognormal(math.log(0.2), 0.2, 32)))
    assert found.cached
    assert found.low < 0.2 < found.high < 0.3
    assert found.pairs == 32
    alike = within_launch.audit(of_pairs(first, first * rng.lognormal(0, 0.2, 32)))
    assert not alike.cached
    assert alike.low < 1 < alike.high


def test_the_audits_interval_covers_the_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(400):
        found = within_launch.audit(of_pairs(np.full(32, 1e9), rng.lognormal(math.log(1e9), 0.3, 32)))
        held += found.low <= 1 <= found.high
    assert 0.93 <= held / 400 <= 1


def test_an_audit_counts_only_pairs_that_were_answered_twice() -> None:
    first = np.full(8, 5.0 * MS)
    status = [200] * 16
    status[3] = 503
    assert within_launch.audit(of_pairs(first, first, status=status)).pairs == 7
    with pytest.raises(BadInput, match="5 answered pairs, needs 6"):
        within_launch.audit(of_pairs(first[:5], first[:5]))
