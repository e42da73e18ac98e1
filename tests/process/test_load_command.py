"""`medserve load` with real Locust: every fault is one line, a marked record and exit code 1, and no orphan."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import Stage
from stub_server import CLASSES, SHAPE, UNIFORM, Handler, Stub, stub

from loadtest import samples
from loadtest.results import latency
from medserve.numbers import ABSENT

Answer = Callable[[Handler], None]


def calm(handler: Handler) -> None:
    time.sleep(0.005)
    handler.scores(UNIFORM)


def load(stage: Stage, server: Stub, *words: str) -> "subprocess.CompletedProcess[str]":
    done = stage("loadtest", "load", "--url", server.url, *words)
    assert not orphans(server), "a process outlived the command"
    return done


def orphans(server: Stub) -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            words = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if server.url in words and process.pid != psutil.Process().pid:
            found.append(words)
    return found


def reason(done: "subprocess.CompletedProcess[str]", out: Path) -> str:
    """The one line, which is also the mark of the record."""
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    line, _, where = done.stderr.removeprefix("error: ").rstrip("\n").partition(" (the record is kept")
    assert str(out) in where
    assert samples.read_facts(out)["incomplete"] == line
    return line


def dies(handler: Handler) -> None:
    """No answer from the fiftieth request on, and no new connection."""
    if handler.server.asked < 50:
        calm(handler)
        return
    handler.close_connection = True
    if handler.server.asked == 50:
        handler.server.socket.close()


def hangs(handler: Handler) -> None:
    if handler.server.asked >= 50:
        time.sleep(30)
    calm(handler)


def refuses(handler: Handler) -> None:
    if handler.server.asked % 10 == 0:
        handler.reply(503, b'{"error": "busy"}')
    else:
        calm(handler)


def slows_down(handler: Handler) -> None:
    time.sleep(0.02 if handler.server.asked < 60 else 0.04)
    handler.scores(UNIFORM)


STOPPED = r"the server stopped answering [\d.]+ s into the run: all \d+ requests since then failed \(.+\); its log"
SOME = r'\d+ of \d+ requests failed, the first 0\.\d+ s into the run: HTTP 503: {"error": "busy"}; reduce the rate'
SLOWER = r"no steady state: median \w+ from [\d.]+ ms to [\d.]+ ms [\d.]+ s in"
OPEN, CLOSED = ("--rate", "50"), ("--users", "1")
STRICT = ("--strict",)


@pytest.mark.parametrize(
    ("answer", "how", "line"),
    [
        pytest.param(dies, OPEN, STOPPED, id="dies"),
        pytest.param(hangs, OPEN, STOPPED, id="hangs"),
        pytest.param(hangs, CLOSED, STOPPED, id="hangs-closed"),
        pytest.param(refuses, OPEN, SOME, id="refuses"),
        # On a busy machine the generator is late as well, which is told first.
        pytest.param(slows_down, OPEN + STRICT, f"{SLOWER}|the load generator could not keep", id="slows-down"),
        pytest.param(slows_down, CLOSED + STRICT, SLOWER, id="slows-down-closed"),
    ],
)
def test_a_fault_half_way_is_one_line_and_a_marked_record(
    stage: Stage, tmp_path: Path, answer: Answer, how: tuple[str, ...], line: str
) -> None:
    out = tmp_path / "samples.parquet"
    words = (*how, "--seconds", "1.8", "--warmup", "0.2", "--timeout", "0.5", "--out", str(out))
    began = time.monotonic()
    with stub(answer) as server:
        done = load(stage, server, *words)
    assert time.monotonic() - began < 25, "it waited longer than its timeout"
    said = reason(done, out)
    assert re.match(line, said), said
    shown = stage("loadtest", "results", str(out))
    assert shown.returncode == 0
    assert f"incomplete   {said}" in shown.stdout
    assert "requests" in done.stdout, "what was measured until then is shown"


def test_a_server_that_slows_down_is_a_warning_and_stays_in_the_percentiles(stage: Stage) -> None:
    with stub(slows_down) as server:
        done = load(stage, server, "--users", "1", "--seconds", "1.8", "--warmup", "0.2")
    assert done.returncode == 0, done.stderr
    assert re.search(rf"^steady +{SLOWER}", done.stdout, re.MULTILINE), done.stdout
    assert "warm-up" not in done.stdout


def test_wrong_scores_are_counted_as_failures(stage: Stage, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.zeros((20, *SHAPE), np.uint8))
    np.save(tmp_path / "good.npy", np.repeat(UNIFORM, 20, axis=0))
    np.save(tmp_path / "other.npy", np.eye(20, CLASSES, dtype=np.float32))
    out = tmp_path / "samples.parquet"
    words = ("--images", str(tmp_path / "images.npy"), "--seconds", "0.5", "--warmup", "0.2", "--out", str(out))
    with stub(calm) as server:
        load(stage, server, *words, "--expect", str(tmp_path / "good.npy"), "--rate", "40")
        good = samples.read(out)["wrong"].to_pylist()
        other = load(stage, server, *words, "--expect", str(tmp_path / "other.npy"), "--rate", "40")
        search = load(
            stage, server, *words, "--expect", str(tmp_path / "other.npy"), "--objective", "p50<1s", "--max-rate", "16"
        )
    assert len(good) == 28
    assert not any(good)
    assert reason(other, out).startswith("20 of 20 answers are wrong, the first 0.200 s into the run: a score")
    assert search.returncode == 1
    assert "error: at 16 requests/s: " in search.stderr
    assert "answers are wrong" in search.stderr


def test_a_server_of_another_protocol_or_none_is_one_line(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handler, "do_GET", lambda handler: handler.reply(200, b"<html>"))
    with stub(calm) as server:
        other = load(stage, server, "--model", "m", "--objective", "p99<50ms")
    nobody = load(stage, server, "--ladder", "1,2")
    for done, words in ((other, "does not describe m as an image classifier"), (nobody, "no server answers at")):
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert words in done.stderr


def test_a_rate_is_checked_against_an_objective(stage: Stage) -> None:
    words = ("--rate", "50", "--seconds", "2", "--warmup", "0.2", "--check")
    with stub(calm) as server:
        yes = load(stage, server, *words, "p90<2000ms", "--json")
        no = load(stage, server, *words, "p90<1us")
        alone = load(stage, server, "--check", "p90<5ms")
    assert yes.returncode == 0, yes.stderr
    found = json.loads(yes.stdout)
    assert (found["exceedance"]["verdict"], found["rate"]) == ("holds", 50.0)
    assert yes.stderr.startswith("an answer after 2 s of load, at most 8 s")
    assert no.returncode == 1
    assert no.stdout.startswith("no: p90 < 0.001 ms fails at 50 requests/s")
    assert no.stderr.endswith("error: p90 < 0.001 ms fails at 50 requests/s\n")
    assert "--check asks about a --rate" in alone.stderr


def test_an_interrupted_run_ends_calmly_and_keeps_what_it_has(tmp_path: Path) -> None:
    out = tmp_path / "samples.parquet"
    with stub(calm) as server:
        words = ["-m", "loadtest", "load", "--url", server.url, "--rate", "50", "--out", str(out)]
        command = subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while server.asked < 20 and time.monotonic() < deadline:
            time.sleep(0.02)
        command.send_signal(signal.SIGINT)
        printed, said = command.communicate(timeout=30)
        assert not orphans(server)
    assert (command.returncode, printed) == (130, "")
    assert said == f"error: interrupted (the record is kept, marked incomplete: {out})\n"
    assert samples.read_facts(out)["incomplete"] == "interrupted"
    assert len(samples.read(out)) >= 10


@pytest.mark.full
def test_a_ladder_marks_the_saturation_point_and_omits_latency_beyond_it(stage: Stage) -> None:
    one_at_a_time = threading.Lock()

    def queueing(handler: Handler) -> None:
        with one_at_a_time:
            time.sleep(0.01)
        handler.scores(UNIFORM)

    with stub(queueing) as server:
        done = load(stage, server, "--ladder", "1,4,2", "--seconds", "1.2", "--warmup", "0.3", "--json")
        text = load(stage, server, "--ladder", "1,3", "--seconds", "0.5", "--warmup", "0.1").stdout
    said = json.loads(done.stdout)
    # Another load on this machine may deny a run its steady state.
    assert done.returncode == (0 if said["incomplete"] is None else 1)
    assert said["incomplete"] is None or "no steady state" in said["incomplete"]
    assert said["saturation_point"] == 1
    assert [step["users"] for step in said["steps"]] == [1, 2, 4]
    assert [step["beyond_saturation"] for step in said["steps"]] == [False, True, True]
    assert [step["p50_ms"] is None for step in said["steps"]] == [False, True, True]
    assert all(step["rate_delivered"] > 0 for step in said["steps"])
    first, above = text.splitlines()[2:4]
    assert first.endswith("<- saturation point")
    assert re.search(rf"3 +[\d.]+ +{ABSENT} +{ABSENT} +beyond saturation", above)


@pytest.mark.full
def test_an_objective_is_answered_with_an_interval(stage: Stage, tmp_path: Path) -> None:
    """A stub that is slow where its last requests came faster than fifty a second."""
    came: list[float] = []

    def overwhelmed(handler: Handler) -> None:
        with handler.server.lock:
            came.append(time.monotonic())
            last = came[-10:]
        time.sleep(0.2 if len(last) == 10 and last[-1] - last[0] < 9 / 50 else 0.005)
        handler.scores(UNIFORM)

    out = tmp_path / "samples.parquet"
    with stub(overwhelmed) as server:
        done = load(
            stage, server, "--objective", "p50<50ms", "--arrivals", "constant", "--rate", "24", "--seconds", "0.5",
            "--warmup", "0.5", "--out", str(out),
        )  # fmt: skip
        found = re.fullmatch(
            r"p50 < 50 ms holds up to (\S+) requests/s \(fails at (\S+)\); 80 % confidence, Constant arrivals\n",
            done.stdout,
        )
        assert found is not None, done.stdout + done.stderr
        low, high = float(found[1]), float(found[2])
        # The machine's own hiccups move the edge a little.
        assert 35 <= low < high <= 60
        lines = done.stderr.splitlines()
        assert lines[0].startswith("bracket       24/s for 0.5 s: p50 ")
        assert re.search(r"about \d+ s left$", lines[0])
        assert lines[-1].startswith("confirm")
        assert len(list(tmp_path.glob("samples-*.parquet"))) == len(lines)
        unmet = load(
            stage, server, "--objective", "p90<1ms", "--arrivals", "constant", "--rate", "1", "--seconds", "2",
            "--warmup", "0", "--max-rate", "10",
        )  # fmt: skip
    assert unmet.returncode == 1
    last = unmet.stderr.splitlines()[-1]
    assert last.startswith("error: p90 < 1 ms cannot be met even at 1 request/s: 100.000% of 2 requests")


def test_several_processes_share_a_schedule_and_make_one_record(stage: Stage, tmp_path: Path) -> None:
    out = tmp_path / "samples.parquet"
    with stub(calm) as server:
        done = load(
            stage, server, "--rate", "60", "--processes", "2", "--seconds", "1", "--warmup", "0", "--out", str(out),
            "--json",
        )  # fmt: skip
    # What is found to be warm-up counts in neither the requests nor the seconds.
    assert json.loads(done.stdout)["rate_delivered"] == pytest.approx(60, rel=0.1), done.stderr
    assert latency.succeeded(samples.read(out)).sum() == 60


def test_an_audit_finds_no_cache_where_there_is_none(stage: Stage) -> None:
    with stub(calm) as server:
        done = load(stage, server, "--audit", "--seconds", "0.3", "--warmup", "0", "--json")
    assert json.loads(done.stdout)["audit"]["cached"] is False


def test_files_are_checked_before_anything_is_sent(stage: Stage, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.zeros((4, 8, 8, 3), np.uint8))
    with stub(calm) as server:
        for words, line in (
            (("--out", str(tmp_path / "missing" / "x.parquet")), "make it, or name another --out"),
            (("--expect", "x.npy"), "give these too"),
            (("--images", str(tmp_path / "images.npy")), "m takes (28, 28, 3)"),
            (("--objective", "p99"), "such as p99<50ms"),
        ):
            done = load(stage, server, *words)
            assert (done.returncode, done.stderr.count("\n")) == (2, 1)
            assert line in done.stderr
        assert server.asked == 0


def test_a_stall_as_long_as_the_run_leaves_one_request_to_measure(stage: Stage) -> None:
    def stalls(handler: Handler) -> None:
        if handler.server.asked == 1:
            time.sleep(1.0)
        calm(handler)

    with stub(stalls) as server:
        done = load(stage, server, "--seconds", "0.2", "--warmup", "0.1", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["n"] == 1


def test_a_server_of_another_body_is_loaded_and_its_answers_are_compared(stage: Stage, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, *SHAPE), np.uint8)
    expected = np.arange(4 * CLASSES, dtype=np.float32).reshape(4, CLASSES) / 100
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "scores.npy", expected)

    def answer(handler: Handler) -> None:
        (sent,) = json.loads(handler.body)["instances"]
        (at,) = np.flatnonzero((images == sent).all((1, 2, 3)))
        handler.reply(
            200 if handler.path == "/mine" else 404, json.dumps({"predictions": [expected[at].tolist()]}).encode()
        )

    with stub(answer) as server:
        words = ["--body", "instances", "--path", "/mine", "--seconds", "0.5", "--warmup", "0.1", "--json"]
        refused = load(stage, server, *words)
        assert "a server of the body instances does not say what images it takes; give --images" in refused.stderr
        words += ["--images", str(tmp_path / "images.npy"), "--expect", str(tmp_path / "scores.npy")]
        done = load(stage, server, *words)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert (found["failed"], found["n"] > 0) == (0, True), found
        expected[:] += 0.1
        wrong = load(stage, server, *words)
    assert wrong.returncode == 1
    assert "a score of " in wrong.stderr, wrong.stderr
