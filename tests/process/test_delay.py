"""The scripted runtime: its delays are those of the script, a stall holds all up, and the record is the truth."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from conftest import Stage
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from server_process import ask, serving

from medserve import wire
from medserve.errors import BadInput
from medserve.spec import Deployment
from serve.runtimes import delay

MS = 1_000_000


class Clock:
    """A clock that stands where a test puts it."""

    def __init__(self) -> None:
        self.time = 7_000 * MS

    def __call__(self) -> int:
        return self.time


def scripted(monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[delay.DelayRuntime, Clock]:
    clock = Clock()
    monkeypatch.setattr(delay, "now", clock)
    deployment = Deployment(artifact="empty", runtime="delay", batch_sizes=(1, 4), options=options)
    runtime = delay.load(Path(), 8, deployment)
    for size in deployment.batch_sizes:
        runtime.run(np.zeros((size, 28, 28, 3), np.uint8))
    return runtime, clock


def begin(runtime: delay.DelayRuntime, clock: Clock, image: NDArray[np.uint8], at_ms: float = 0.0) -> float:
    """Milliseconds after the clock's zero at which a prediction that begins at `at_ms` is due."""
    clock.time = 7_000 * MS + round(at_ms * MS)
    return (runtime.due(runtime.run(image)) - 7_000 * MS) / MS


def test_delays_are_taken_in_turn_from_the_first_request_on(
    monkeypatch: pytest.MonkeyPatch, image: NDArray[np.uint8]
) -> None:
    runtime, clock = scripted(monkeypatch, delays_ms=[0, 1, 2.5])
    assert [begin(runtime, clock, image) for _ in range(5)] == [0, 1, 2.5, 0, 1]


def test_delays_are_drawn_by_shares_and_seed(monkeypatch: pytest.MonkeyPatch, image: NDArray[np.uint8]) -> None:
    def drawn(seed: int) -> list[float]:
        runtime, clock = scripted(monkeypatch, delays_ms=[1, 2, 3], shares=[3, 1, 0], seed=seed)
        return [begin(runtime, clock, image) for _ in range(400)]

    first = drawn(0)
    assert first == drawn(0)
    assert first != drawn(1)
    assert set(first) == {1, 2}
    assert first.count(1) == pytest.approx(300, abs=50)


# Whole milliseconds: the script counts nanoseconds, and a time between two of them has no true answer.
requests = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 120)), min_size=1, max_size=30)


@given(requests, st.integers(0, 150), st.integers(0, 100))
def test_a_stall_holds_up_all_that_is_under_way_or_arrives(asked: list[tuple[int, int]], at: int, length: int) -> None:
    image = np.zeros((1, 28, 28, 3), np.uint8)
    asked = [(begun, wait) for (begun, _), (_, wait) in zip(sorted(asked), asked, strict=True)]
    start = asked[0][0] + at
    with pytest.MonkeyPatch.context() as patch:
        runtime, clock = scripted(
            patch, delays_ms=[wait for _, wait in asked], stall_at=at / 1e3, stall_seconds=length / 1e3
        )
        for begun, wait in asked:
            due, end = begin(runtime, clock, image, begun), start + length
            touched = begun < end and begun + wait >= start
            assert due == (max(begun + wait, end) if touched else begun + wait)


def test_a_stall_comes_again(monkeypatch: pytest.MonkeyPatch, image: NDArray[np.uint8]) -> None:
    runtime, clock = scripted(monkeypatch, delays_ms=[5], stall_at=0.1, stall_seconds=0.05, stall_every=0.2)
    asked = (0, 90, 96, 149, 151, 294, 296, 349, 351, 500)
    assert [begin(runtime, clock, image, at) for at in asked] == [5, 95, 150, 154, 156, 299, 350, 354, 356, 550]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"delay": 3}, "the options of delay: Object contains unknown field `delay`"),
        ({"delays_ms": "3"}, r"the options of delay: Expected `array`, got `str` - at `\$.delays_ms`"),
        ({"delays_ms": []}, r"the options of delay: Expected `array` of length >= 1 - at `\$.delays_ms`"),
        ({"delays_ms": [1, -1]}, r"the options of delay: Expected `float` >= 0.0 - at `\$.delays_ms\[1\]`"),
        ({"stall_seconds": -1}, r"Expected `float` >= 0.0 - at `\$.stall_seconds`"),
        ({"delays_ms": [1, 2], "shares": [1]}, r"'shares' is \[1.0\]; expected a weight for each of the 2 'delays_ms'"),
        ({"shares": [0]}, "not all 0"),
    ],
)
def test_options_that_are_no_script_are_refused(options: dict[str, Any], line: str) -> None:
    with pytest.raises(BadInput, match=line):
        delay.load(Path(), 8, Deployment(artifact="empty", runtime="delay", options=options))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--runtime", "delay", "--options", "{delays}"], "--options is not a dict in JSON: "),
        (["--runtime", "delay", "--options", '{"delays": [1]}'], "the options of delay: Object contains unknown field"),
        (["--runtime", "null", "--options", '{"delays_ms": [1]}'], "null takes no options; leave out delays_ms"),
        (["--runtime", "null", "--dispatch", "concurrent"], "does not say when a prediction is due"),
    ],
)
def test_a_server_refuses_options_in_one_line(stage: Stage, empty: Path, words: list[str], line: str) -> None:
    done = stage("serve", str(empty), *words, "--port", "0")
    assert done.returncode == 2
    assert line in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_record_of_each_request_is_the_delay_that_it_received(empty: Path, image: NDArray[np.uint8]) -> None:
    delays = [0, 30, 90]
    options = msgspec.json.encode({"delays_ms": delays}).decode()
    words = ["--runtime", "delay", "--dispatch", "concurrent", "--threads", "0", "--options", options]
    headers, body = wire.encode_request(image)
    with serving(empty, *words) as server, server.connected() as connection:
        answers = [ask(connection, "POST", server.infer_path, body, headers) for _ in range(6)]
    assert all((answer.scores == np.float32(1 / 8)).all() for answer in answers)
    truth = [wire.parse_server_timing(answer.headers["server-timing"])["infer"] / MS for answer in answers]
    assert all(received >= scripted for received, scripted in zip(truth, delays * 2, strict=True))
    assert [min(delays, key=lambda scripted: abs(scripted - received)) for received in truth] == delays * 2


def test_a_busy_server_never_sleeps(monkeypatch: pytest.MonkeyPatch, image: NDArray[np.uint8]) -> None:
    slept: list[float] = []
    monkeypatch.setattr(delay.time, "sleep", slept.append)
    for busy in (True, False):
        runtime, clock = scripted(monkeypatch, delays_ms=[2.0], busy=busy)
        y = runtime.run(image)
        looked = [0]

        def ticking(clock: Clock = clock, looked: list[int] = looked) -> int:
            looked[0] += 1
            clock.time += MS // 10
            return clock.time

        monkeypatch.setattr(delay, "now", ticking)
        runtime.synchronise(y)
        assert looked == [20], "until the prediction is due, and no longer"
    assert len(slept) == 19, "the other server sleeps for what is left each time"
