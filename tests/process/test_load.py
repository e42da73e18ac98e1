"""Real servers, real Locust: what is recorded is what happened, and nothing outlives its parent."""

import json
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
from conftest import Stage
from stub_server import CLASSES, SHAPE, UNIFORM, Handler, Stub, stub

from loadtest import samples
from loadtest.analysis import intervals
from loadtest.generator import payload
from loadtest.generator.payload import Load
from loadtest.measure.locust_process import LOCUSTFILE, generate
from loadtest.results import latency
from medserve.errors import BadInput, CannotRun
from medserve.spec import LoadProfile


def closed(seconds: float = 0.8, **other: object) -> LoadProfile:
    return LoadProfile(name="closed", mode="closed-loop", seconds=seconds, warmup_seconds=0.2, **other)


def opened(rate: float = 50.0, seconds: float = 0.8, **other: object) -> LoadProfile:
    return LoadProfile(name="open", mode="open-loop", rate=rate, seconds=seconds, warmup_seconds=0.2, **other)


def load(server: Stub, profile: LoadProfile, folder: Path, **other: object) -> pa.Table:
    """Run Locust on a stub; returns the record."""
    out = folder / "samples.parquet"
    plan = Load(url=server.url, model="m", profile=profile, shape=SHAPE, out=str(out), **other)
    generate(plan, folder / "locust.log")
    return samples.read(out)


def column(table: pa.Table, name: str) -> np.ndarray:
    return table[name].to_numpy()


def test_an_open_loop_sends_when_it_is_due_and_sees_a_stall_that_a_closed_loop_hides(tmp_path: Path) -> None:
    began: list[float] = []

    def stalling(handler: Handler) -> None:
        with handler.server.lock:
            began.append(time.monotonic())
        since = time.monotonic() - began[0]
        if 0.6 < since < 1.6:
            time.sleep(1.6 - since)
        handler.scores(UNIFORM)

    with stub(stalling) as server:
        seen_open = load(server, opened(seconds=1.8), tmp_path)
        began.clear()
        seen_closed = load(server, closed(seconds=1.8), tmp_path)
    assert len(seen_open) == 100
    gaps = np.diff(column(seen_open, "intended_ns"))
    assert (gaps == 20_000_000).all(), "the schedule was not kept to"
    # 50 requests a second met a second of standstill: all that were due in its first half waited for the other.
    waited = np.sort(latency.from_intended_start(seen_open))
    assert (waited > 0.49e9).sum() >= 24
    assert column(seen_open, "connection").max() >= 24, "a request waited for the answer of another"
    hidden = np.sort(latency.from_intended_start(seen_closed))
    assert (hidden > 0.49e9).sum() == 1
    assert intervals.percentile(waited, 0.8) > 0.49e9 > intervals.percentile(hidden, 0.8)


def test_what_the_client_itself_held_up_counts_from_the_intended_time_only(tmp_path: Path) -> None:
    """Locust is stopped for 0.4 s: the requests that were due meanwhile leave late."""

    def hold_up() -> None:
        deadline = time.monotonic() + 30
        while server.asked < 20 and time.monotonic() < deadline:
            time.sleep(0.01)
        locust = next(child for child in psutil.Process().children() if "locust" in " ".join(child.cmdline()))
        locust.suspend()
        time.sleep(0.4)
        locust.resume()

    with stub(lambda handler: handler.scores(UNIFORM)) as server:
        thread = threading.Thread(target=hold_up)
        thread.start()
        table = load(server, opened(seconds=1.2), tmp_path)
        thread.join()
    lag = column(table, "sent_ns") - column(table, "intended_ns")
    assert (lag >= 0).all()
    late = lag > 0.2e9
    assert late.sum() >= 8
    from_intended = latency.from_intended_start(table)
    from_sent = column(table, "done_ns") - column(table, "sent_ns")
    assert (from_intended[late] > 0.2e9).all()
    assert np.median(from_sent[late]) < 0.2e9


def test_every_failure_is_recorded_and_ends_no_user(tmp_path: Path) -> None:
    def moody(handler: Handler) -> None:
        match handler.server.asked % 5:
            case 0:
                handler.reply(500, b'{"error": "out of sorts"}')
            case 1:  # hangs up without a word
                handler.close_connection = True
            case 2:  # hangs up in the middle of an answer
                handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")
                handler.close_connection = True
            case 3:  # answers what is not the protocol
                handler.reply(200, b"hello")
            case _:
                handler.scores(UNIFORM)

    np.save(tmp_path / "expected.npy", np.repeat(UNIFORM, payload.RANDOM_IMAGES, axis=0))
    with stub(moody) as server:
        table = load(server, opened(rate=100, seconds=0.8), tmp_path, expected=str(tmp_path / "expected.npy"))
        asked = server.asked
    assert len(table) == 100 == asked, "a request was lost, or sent twice"
    status, errors = column(table, "status"), table["error"].to_pylist()
    assert sorted(np.unique(status, return_counts=True)[1].tolist()) == [20, 40, 40]
    assert {error for error, code in zip(errors, status, strict=True) if code == 500} == {
        'HTTP 500: {"error": "out of sorts"}'
    }
    assert all(error for error, code in zip(errors, status, strict=True) if code == 0)
    wrong = table["wrong"].to_pylist()
    assert wrong.count(True) == 20
    assert wrong.count(False) == 20
    assert latency.succeeded(table).sum() == 20
    assert np.isinf(latency.from_intended_start(table)).sum() == 80


@pytest.mark.parametrize("profile", [opened(), closed()])
def test_a_server_that_never_answers_is_a_record_of_failures(tmp_path: Path, profile: LoadProfile) -> None:
    with stub(lambda handler: time.sleep(30)) as server:
        table = load(server, profile, tmp_path, timeout_seconds=0.5)
    assert len(table) == (50 if profile.mode == "open-loop" else 2)
    assert set(column(table, "status")) == {0}
    assert all("timed out" in error or "no answer within 0.5 s" in error for error in table["error"].to_pylist())


def test_a_user_rests_after_each_answer(tmp_path: Path) -> None:
    looked: list[int] = []
    with stub(lambda handler: handler.scores(UNIFORM)) as server:
        plan = Load(
            url=server.url, model="m", profile=closed(gap_seconds=0.1), shape=SHAPE, out=str(tmp_path / "s.parquet")
        )
        generate(plan, tmp_path / "locust.log", look=looked.append)
    table = samples.read(tmp_path / "s.parquet")
    rests = column(table, "sent_ns")[1:] - column(table, "done_ns")[:-1]
    assert 3 <= len(table) <= 10
    assert rests.min() > 0.099e9
    assert len(looked) >= 2
    assert len(set(looked)) == 1, "it is one process that is looked at"


def test_an_audit_follows_the_timed_requests_and_shows_whether_a_server_remembers(tmp_path: Path) -> None:
    bodies: list[bytes] = []

    def noting(handler: Handler) -> None:
        bodies.append(handler.body)
        handler.scores(UNIFORM)

    with stub(noting) as server:
        table = load(server, closed(seconds=0.3), tmp_path, audit=str(tmp_path / "audit.parquet"))
    audit = samples.read(tmp_path / "audit.parquet")
    assert len(table) + 2 * payload.AUDIT_PAIRS == len(bodies)
    assert len(audit) == 2 * payload.AUDIT_PAIRS
    assert column(audit, "image").tolist() == [pair for pair in range(payload.AUDIT_PAIRS) for _ in range(2)]
    assert column(audit, "sent_ns").min() > column(table, "done_ns").max()
    assert (np.diff(column(audit, "sent_ns")) > 0).all()
    asked = bodies[len(table) :]
    assert asked[::2] == asked[1::2]
    assert len(set(asked)) == payload.AUDIT_PAIRS
    assert not set(asked) & set(bodies[: len(table)])


def test_an_audit_of_several_users_or_processes_is_refused(tmp_path: Path) -> None:
    for profile, processes in ((closed(users=2), 1), (opened(), 1), (closed(), 2)):
        plan = Load(
            url="http://127.0.0.1:9", model="m", profile=profile, shape=SHAPE, audit=str(tmp_path / "a.parquet")
        )
        with pytest.raises(BadInput, match="an audit needs"):
            generate(plan, tmp_path / "locust.log", processes=processes)


def test_a_schedule_or_a_gap_that_cannot_be_had_is_refused_before_anything_starts(tmp_path: Path) -> None:
    missing = str(tmp_path / "trace.txt")
    for profile, said in (
        (opened(rate=None, arrivals="trace", trace=missing), "trace.txt: not a readable trace"),
        (opened(rate=None), "has no 'rate'"),
        (closed(gap_seconds=-1.0), "gap of closed is -1.0 s"),
    ):
        with pytest.raises(BadInput, match=said):
            generate(Load(url="http://127.0.0.1:9", model="m", profile=profile, shape=SHAPE), tmp_path / "locust.log")
    assert list(tmp_path.iterdir()) == []


def test_a_trace_is_sent_as_it_was_recorded(tmp_path: Path) -> None:
    (tmp_path / "trace.txt").write_text("7.0\n7.1\n7.1\n7.45\n9.0\n")
    with stub(lambda handler: handler.scores(UNIFORM)) as server:
        profile = opened(rate=None, seconds=0.4, arrivals="trace", trace=str(tmp_path / "trace.txt"))
        table = load(server, profile, tmp_path)
    intended = column(table, "intended_ns")
    assert (intended - intended[0]).tolist() == [0, 100_000_000, 100_000_000, 450_000_000]
    assert table["warmup"].to_pylist() == [True, True, True, False]


def test_several_users_share_the_images_and_keep_a_connection_each(tmp_path: Path) -> None:
    with stub(lambda handler: handler.scores(UNIFORM)) as server:
        table = load(server, closed(users=4), tmp_path, seed=3)
    assert set(column(table, "connection")) == {0, 1, 2, 3}
    assert samples.read_facts(tmp_path / "samples.parquet")["connections"] == 4
    order = np.random.default_rng(3).permutation(payload.RANDOM_IMAGES)
    images, connections = column(table, "image"), column(table, "connection")
    for connection in range(4):
        sent = images[connections == connection]
        begin = int(np.flatnonzero(order == sent[0])[0])
        assert np.array_equal(sent, order[(begin + 4 * np.arange(len(sent))) % len(order)])
    assert len({images[connections == connection][0] for connection in range(4)}) == 4


def test_a_record_that_cannot_be_written_is_a_reason(tmp_path: Path) -> None:
    with (
        stub(lambda handler: handler.scores(UNIFORM)) as server,
        pytest.raises(CannotRun, match="exit code 1: the record could not be written: .*No such file"),
    ):
        out = tmp_path / "missing" / "samples.parquet"
        plan = Load(url=server.url, model="m", profile=closed(), shape=SHAPE, out=str(out))
        generate(plan, tmp_path / "locust.log")


def test_other_scores_than_the_certified_ones_are_wrong(tmp_path: Path) -> None:
    np.save(tmp_path / "expected.npy", np.repeat(UNIFORM, payload.RANDOM_IMAGES, axis=0))
    shifted = UNIFORM + np.array([[2e-3, -2e-3] + [0.0] * (CLASSES - 2)], np.float32)
    with stub(lambda handler: handler.scores(shifted)) as server:
        table = load(server, closed(), tmp_path, expected=str(tmp_path / "expected.npy"))
    assert all(table["wrong"].to_pylist())
    assert np.isinf(latency.from_intended_start(table)).all()


def test_load_finds_the_model_and_says_what_it_saw(stage: Stage, tmp_path: Path) -> None:
    out = tmp_path / "samples.parquet"
    with stub(lambda handler: handler.scores(UNIFORM)) as server:
        words = ["loadtest", "load", "--url", server.url, "--seconds", "1", "--warmup", "0.2"]
        fast = stage(*words, "--rate", "100", "--json", "--out", str(out))
        calm = stage(*words, "--users", "2")
    said = json.loads(fast.stdout)
    assert (said["model"], said["failed"]) == ("m", 0)
    # Less what is found to be warm-up.
    assert said["rate_delivered"] == pytest.approx(100, rel=0.1)
    assert said["p50_ms"] > 0
    assert said["p99_ms"] is None, "100 samples carry no p99"
    assert len(samples.read(out)) == 120
    assert "p50" in calm.stdout


def test_load_says_in_one_line_what_is_wrong_with_a_server(stage: Stage, tmp_path: Path) -> None:
    with stub(lambda handler: handler.reply(500, b'{"error": "no"}')) as server:
        refused = stage("loadtest", "load", "--url", server.url, "--seconds", "0.3", "--warmup", "0")
        unknown = stage("loadtest", "load", "--url", server.url, "--model", "n")
    assert refused.returncode == 1
    assert "requests failed: HTTP 500" in refused.stderr
    assert (unknown.returncode, unknown.stderr) == (2, "error: unknown model 'n'; there is: m\n")
    nobody = stage("loadtest", "load", "--url", server.url)
    assert nobody.returncode == 1
    assert nobody.stderr.startswith(f"error: no server answers at {server.url}")
    for url in ("https://127.0.0.1:1", "127.0.0.1:8000", "http://127.0.0.1:port"):
        done = stage("loadtest", "load", "--url", url)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "expected http://HOST:PORT" in done.stderr


def test_a_server_of_another_protocol_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with stub(lambda handler: None) as server:
        monkeypatch.setattr(Handler, "do_GET", lambda handler: handler.reply(200, b"<html>"))
        with pytest.raises(CannotRun, match="does not describe m as an image classifier"):
            payload.describe(server.url, "m")
        monkeypatch.setattr(
            Handler,
            "do_GET",
            lambda handler: handler.reply(
                200, b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3, 8, 8]}]}'
            ),
        )
        with pytest.raises(CannotRun, match="this program sends UINT8"):
            payload.describe(server.url, "m")


def test_no_file_beside_the_locustfile_is_named_like_one_of_the_standard_library() -> None:
    names = {path.stem for path in LOCUSTFILE.parent.iterdir()} - {"__init__", "__main__", "__pycache__"}
    assert not names & sys.stdlib_module_names
