"""The search for the highest rate, against simulated servers whose answer is known."""

import re
from math import inf, log

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.analysis.slo_search import LOWEST_RATE, RESOLUTION, SearchResult, search
from loadtest.analysis.slo_trials import JudgedTrial, Left, Measure, Objective, Trial, parse_objective
from medserve.errors import BadInput, CannotRun

P90 = Objective(p=0.9, limit_ms=50.0)


@pytest.mark.parametrize(
    ("text", "p", "limit_ms"),
    [("p99<50ms", 0.99, 50.0), ("p50 < 250us", 0.5, 0.25), (" p99.9<1.5s ", 0.999, 1500.0), ("p90<0.5ms", 0.9, 0.5)],
)
def test_an_objective_is_read(text: str, p: float, limit_ms: float) -> None:
    assert parse_objective(text) == Objective(p=p, limit_ms=pytest.approx(limit_ms))


@pytest.mark.parametrize(
    "text", ["", "p99", "99<50ms", "p99<50", "p99>50ms", "p49<50ms", "p100<1s", "p99.95<1s", "p99<0ms", "p99<-1ms"]
)
def test_a_refused_objective_shows_the_form(text: str) -> None:
    with pytest.raises(BadInput, match="such as p99<50ms"):
        parse_objective(text)


@given(st.integers(50, 99), st.integers(1, 10_000))
def test_an_objective_is_spoken_as_it_is_read(percent: int, limit: int) -> None:
    assert str(parse_objective(f"p{percent}<{limit}ms")) == f"p{percent} < {limit:g} ms"


def found(
    measure: Measure, objective: Objective = P90, ceiling: float = 1e4, seed: int = 0, seconds: float = 10.0
) -> SearchResult:
    told: list[JudgedTrial] = []
    lefts: list[Left] = []

    def tell(judged: JudgedTrial, left: Left) -> None:
        told.append(judged)
        lefts.append(left)
        assert len(told) < 60, "the search does not come to an end"

    answer = search(
        objective, measure, tell, ceiling=ceiling, why_ceiling="enough", seconds=seconds, seed=seed, most_seconds=inf
    )
    assert tuple(told) == answer.trials
    assert all(left.trials >= 0 and left.seconds >= 0 for left in lefts)
    assert lefts[-1].trials <= 1, "the confirmation of the upper end may be needless"
    if answer.low:
        confirmed = {trial.rate: trial.exceedance.verdict for trial in told if trial.step == "confirm"}
        assert confirmed[answer.low] == "holds"
        assert answer.high is None or confirmed[answer.high] == "fails"
    return answer


def single_server(capacity: float) -> Measure:
    """M/M/1: exponential gaps and services, one at a time, first come first served (Lindley's recursion)."""

    def measure(rate: float, seconds: float, seed: int) -> Trial:
        generator = np.random.default_rng(seed)
        warmup = 1.0
        count = generator.poisson(rate * (seconds + warmup))
        gaps, services = generator.exponential(1 / rate, count), generator.exponential(1 / capacity, count)
        walk = np.concatenate([[0.0], np.cumsum(services[:-1] - gaps[1:])])[:count]
        waited = walk - np.minimum.accumulate(walk)
        latencies = ((waited + services) * 1e9)[np.cumsum(gaps) > warmup]
        return Trial(latencies, latencies)

    return measure


def step(capacity: float, above_ms: float = 1000.0) -> Measure:
    """1 ms up to a rate, slow above it."""

    def measure(rate: float, seconds: float, seed: int) -> Trial:
        latencies = np.full(max(1, int(rate * seconds)), (1.0 if rate <= capacity else above_ms) * 1e6)
        return Trial(latencies, latencies)

    return measure


@pytest.mark.parametrize(
    ("objective", "capacity"),
    [
        (Objective(p=0.99, limit_ms=50.0), 1000.0),
        (Objective(p=0.9, limit_ms=5.0), 1000.0),
        (Objective(p=0.95, limit_ms=200.0), 50.0),
    ],
)
def test_the_interval_covers_the_true_rate_of_a_queue(objective: Objective, capacity: float) -> None:
    # The time in an M/M/1 queue is exponential with rate capacity - arrivals.
    true = capacity - log(1 / (1 - objective.p)) / (objective.limit_ms / 1e3)
    answers = [found(single_server(capacity), objective, seed=1000 * seed) for seed in range(20)]
    covered = sum(answer.low <= true <= (answer.high or inf) for answer in answers)
    assert covered >= 18
    assert np.median([answer.low for answer in answers]) > 0.7 * true
    assert np.median([answer.high or inf for answer in answers]) < 1.3 * true


@given(st.floats(1.0, 5000.0))
def test_a_sharp_edge_is_found_within_the_bracket(capacity: float) -> None:
    answer = found(step(capacity))
    assert answer.high is not None
    assert answer.low <= capacity < answer.high
    # The rates that are tried have three digits.
    assert answer.high <= answer.low * (1 + RESOLUTION) * 1.01
    assert {trial.step for trial in answer.trials} >= {"bracket", "confirm"}


@given(st.floats(20.0, 2000.0), st.floats(1.5, 10.0))
def test_a_faster_server_is_found_faster(capacity: float, factor: float) -> None:
    assert found(step(capacity)).low < found(step(factor * capacity), ceiling=1e5).low


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.floats(0.0, 1.0))
def test_whatever_a_server_does_the_search_ends(seed: int, noise: float) -> None:
    generator = np.random.default_rng(seed)

    def moody(rate: float, seconds: float, _: int) -> Trial:
        share = generator.random() if generator.random() < noise else 0.1
        latencies = np.where(generator.random(generator.poisson(rate * seconds)) < share, 1e9, 1e6)
        return Trial(latencies, latencies)

    try:
        answer = found(moody, seconds=1.0, ceiling=500.0)
    except CannotRun as error:
        said = str(error)
        assert "even at 1 request/s" in said
    else:
        assert answer.high is None or answer.low < answer.high
        assert LOWEST_RATE <= answer.low <= 500.0


def test_no_rate_above_the_ceiling_is_tried() -> None:
    answer = found(step(1e6), ceiling=700.0)
    assert (answer.low, answer.high, answer.reason) == (700.0, None, "enough")
    assert max(trial.rate for trial in answer.trials) == 700.0
    assert str(answer) == "p90 < 50 ms holds up to 700 requests/s (no higher rate failed: enough)"


def test_a_rate_that_a_longer_trial_refutes_is_stepped_down_from() -> None:
    def tiring(rate: float, seconds: float, seed: int) -> Trial:
        return step(100.0 if seconds < 40 else 80.0)(rate, seconds, seed)

    answer = found(tiring)
    assert 60.0 <= answer.low <= 80.0
    assert answer.high is not None
    assert 80.0 < answer.high <= 100.0
    assert len({trial.rate for trial in answer.trials if trial.step == "confirm"}) >= 2


def test_an_undecided_rate_is_prolonged_and_belongs_to_the_interval() -> None:
    def fuzzy(rate: float, seconds: float, seed: int) -> Trial:
        share = 0.0 if rate <= 100 else 0.1 if rate <= 150 else 1.0
        slow = np.arange(int(rate * seconds)) % 10 < round(10 * share)
        return Trial(*[np.where(slow, 1e9, 1e6)] * 2)

    answer = found(fuzzy)
    assert answer.high is not None
    assert answer.low <= 100 < 150 <= answer.high
    undecided = [trial for trial in answer.trials if trial.exceedance.verdict == "undecided"]
    assert [trial.seconds for trial in undecided if trial.rate == undecided[0].rate] == [10.0, 40.0]
    assert all(100 < trial.rate <= 150 for trial in undecided)


def test_an_objective_that_is_never_met_is_one_line() -> None:
    with pytest.raises(CannotRun, match=r"p90 < 50 ms cannot be met even at 1 request/s: 100.000% of \d+ requests"):
        found(step(0.5))


def test_failed_requests_do_not_meet_an_objective() -> None:
    failed = np.full(100, inf)
    with pytest.raises(CannotRun, match="cannot be met"):
        found(lambda rate, seconds, seed: Trial(failed, failed))


def lagging(capacity: float, above: float, once: bool = False, by: float = 100e6) -> Measure:
    """The client is late by 100 ms above a rate; with `once`, in every second trial only."""
    trials = iter(range(1000))

    def measure(rate: float, seconds: float, seed: int) -> Trial:
        sent = step(capacity)(rate, seconds, seed).service
        late = rate > above and not (once and next(trials) % 2)
        return Trial(sent + (by if late else 0.0), sent)

    return measure


def test_a_client_that_lags_again_and_again_is_the_ceiling() -> None:
    answer = found(lagging(300.0, above=100))
    assert 80 < answer.low <= 100
    assert answer.high is None
    assert re.search(r"the load generator is the limit: at 1\d\d requests/s p90 is 101 ms from", str(answer))
    with pytest.raises(CannotRun, match="load generator is the limit: at 1 requests/s"):
        found(lagging(300.0, above=0))


def test_a_search_ends_in_time_and_keeps_what_it_found() -> None:
    slow = step(300.0)
    with pytest.raises(CannotRun, match=r"no answer within 60 s of load; not confirmed: p90 < \d+ ms held at 256 "):
        search(P90, slow, lambda *_: None, ceiling=1e4, why_ceiling="enough", most_seconds=60.0)

    def stopped(rate: float, seconds: float, seed: int) -> Trial:
        if rate > 100:
            raise KeyboardInterrupt("interrupted")
        return slow(rate, seconds, seed)

    with pytest.raises(KeyboardInterrupt, match=r"interrupted; not confirmed: .* held at 64 requests/s and failed"):
        search(P90, stopped, lambda *_: None, ceiling=1e4, why_ceiling="enough")


def test_a_client_that_lags_once_is_tried_again() -> None:
    answer = found(lagging(300.0, above=100, once=True))
    assert answer.high is not None
    assert answer.low <= 300 < answer.high
    assert any("the load generator is the limit" in (trial.repeated or "") for trial in answer.trials)


def test_a_client_that_lags_within_the_limit_does_not_matter() -> None:
    answer = found(lagging(300.0, above=0, by=20e6))
    assert answer.low <= 300 < (answer.high or inf)
    assert not any(trial.repeated for trial in answer.trials)


def test_where_the_server_fails_by_itself_a_client_that_lags_does_not_matter() -> None:
    answer = found(lagging(100.0, above=100))
    assert answer.low <= 100 < (answer.high or inf)
    assert not any(trial.repeated for trial in answer.trials)


def test_a_disturbed_trial_is_repeated_and_makes_no_rate_fail() -> None:
    trials = iter(range(1000))

    def disturbed(rate: float, seconds: float, seed: int) -> Trial:
        if next(trials) % 3 == 2:
            slow = step(0.0)(rate, seconds, seed).latencies
            return Trial(slow, slow, "the hypervisor took 40 %")
        return step(100.0)(rate, seconds, seed)

    answer = found(disturbed)
    assert answer.high is not None
    assert 90 < answer.low <= 100 < answer.high < 111
    repeated = [trial for trial in answer.trials if trial.repeated]
    assert {trial.repeated for trial in repeated} == {"the hypervisor took 40 %"}
    # One that is disturbed every time counts in the end: the search does not go on for ever.
    always = found(
        lambda rate, seconds, seed: msgspec.structs.replace(step(100.0)(rate, seconds, seed), disturbed="noise")
    )
    assert always.high is not None
    assert always.low <= 100 < always.high
