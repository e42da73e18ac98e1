"""The load generator's self-test: records of known answers, true and false ones; and a short run of the real parts."""

import json
import re
from pathlib import Path
from typing import Any

import made_run
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from conftest import Stage
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from loadtest import samples
from loadtest.generator import schedule
from loadtest.report import document, facts, page
from loadtest.report.sections import measurement
from loadtest.selftest import known_answers
from loadtest.selftest import run as selftest
from medserve import store
from medserve.errors import BadInput
from medserve.result import Check, SelfTest

MS = 1_000_000
START = 5_000 * MS
OVERHEAD = 0.2
DELAYS = (0.0, 1.0, 5.0, 20.0)
Floats = NDArray[np.float64]


def record(arrivals: NDArray[np.int64], truth_ms: Floats, added_ms: Floats | float = OVERHEAD) -> pa.Table:
    """A record of requests sent on time, answered `added_ms` after what the server made each wait."""
    intended = START + arrivals
    truth = np.rint(np.broadcast_to(truth_ms, arrivals.shape) * MS).astype(np.int64)
    done = intended + truth + np.rint(np.broadcast_to(added_ms, arrivals.shape) * MS).astype(np.int64)
    columns: dict[str, Any] = {
        "intended_ns": intended,
        "sent_ns": intended,
        "done_ns": done,
        "server_received_ns": intended,
        "server_sent_ns": intended + truth,
        "infer_ns": truth,
        "status": np.full(len(arrivals), 200),
        "batch": np.ones(len(arrivals), np.int64),
        "warmup": np.zeros(len(arrivals), np.bool_),
        "wrong": np.zeros(len(arrivals), np.bool_),
    }
    return samples.as_table(columns)


def with_column(table: pa.Table, name: str, values: NDArray[Any]) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values, table[name].type))


def poisson(rate: float = 100.0, seconds: float = 20.0) -> NDArray[np.int64]:
    return schedule.poisson(rate, seconds, 3)


def known_record() -> pa.Table:
    arrivals = poisson()
    return record(arrivals, np.resize(DELAYS, len(arrivals)))


def mixed_record() -> pa.Table:
    arrivals = poisson()
    script = selftest.MIXED
    return record(arrivals, np.random.default_rng(0).choice(script["delays_ms"], len(arrivals), p=script["shares"]))


def stalled(arrivals: NDArray[np.int64], at: float = 5.0, seconds: float = 1.0) -> Floats:
    """Milliseconds that each request waits for the end of a stall `at` seconds after the first."""
    since = (arrivals - arrivals[0]) / 1e9 - at
    return np.where((since >= 0) & (since < seconds), (seconds - since) * 1e3, 0.0)


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def wrong(checks: list[Check]) -> set[str]:
    return {check.name for check in checks if check.ok is False}


def test_an_exact_load_generator_passes() -> None:
    arrivals = poisson()
    checks = known_answers.known(known_record(), known_record(), DELAYS)
    checks += known_answers.mixed(mixed_record(), mixed_record())
    checks += known_answers.schedule(mixed_record(), mixed_record(), arrivals)
    checks += known_answers.stall(record(arrivals, stalled(arrivals)), arrivals, 5.0, 1.0)
    assert wrong(checks) == set()
    found = by_name(checks)
    assert found["known delays: p50 of 20 ms"].measured == pytest.approx(20)
    assert found["mixed delays: p50"].truth == 2
    assert found["mixed delays: p90"].truth == 8
    assert found["mixed delays: p99"].truth == 30
    assert found["mixed delays: p99.9"].ok is None
    assert found["requests not planned by the schedule"].measured == 0
    assert found["arrival after the intended start: p50"].measured == 0
    assert found["stall: p99"].truth == pytest.approx(800, abs=100)
    closed = found["stall: uncorrected p99"]
    assert closed.ok is None
    assert closed.measured is not None
    assert closed.measured < 10


def test_what_any_client_pays_is_no_fault_of_the_generator() -> None:
    """Waking a core after a long sleep takes as long for the reference client."""
    arrivals = poisson()
    truth = np.resize(DELAYS, len(arrivals))
    slow = record(arrivals, truth, OVERHEAD + 0.3 * (truth > 1))
    assert wrong(known_answers.known(slow, slow, DELAYS)) == set()
    assert wrong(known_answers.known(slow, known_record(), DELAYS)) == {f"known delays: p50 of {d} ms" for d in (5,)}


@given(st.floats(-1.0, 1.0), st.integers(40, 400), st.floats(0.01, 1.0))
def test_a_check_fails_only_where_its_interval_lies_beyond_the_limit(added: float, count: int, spread: float) -> None:
    arrivals = schedule.constant(100.0, count / 100)
    noise = np.random.default_rng(count).normal(2 * OVERHEAD, spread * OVERHEAD, (2, count))
    ours, theirs = (
        record(arrivals, np.ones(count), np.abs(row) + more) for row, more in zip(noise, (added, 0.0), strict=True)
    )
    (check,) = known_answers.known(ours, theirs, (1.0,))
    assert check.measured is not None
    assert check.low is not None
    assert check.high is not None
    assert check.low <= check.measured <= check.high
    assert check.ok is (check.low <= 1.15 and check.high >= 0.85)


def test_a_load_generator_that_stretches_time_fails() -> None:
    table = known_record()
    truth = table["infer_ns"].to_numpy() / MS
    failed = wrong(known_answers.known(record(poisson(), truth, OVERHEAD + 0.04 * truth), table, DELAYS))
    assert failed == {"known delays: p50 of 5 ms", "known delays: p50 of 20 ms"}


def test_a_load_generator_of_whole_milliseconds_fails() -> None:
    table = mixed_record()
    rough = np.rint((table["done_ns"].to_numpy() - START) / MS + 0.5) * MS + START
    failed = wrong(known_answers.mixed(with_column(table, "done_ns", rough), table))
    assert "mixed delays: p50" in failed


def test_a_load_generator_that_sends_at_other_times_than_it_says_fails() -> None:
    """Late by 0.3 ms with stamps to match; and evenly in place of at random, with the stamps of the schedule."""
    arrivals, table = poisson(), mixed_record()
    late = with_column(table, "server_received_ns", table["server_received_ns"].to_numpy() + 3 * MS // 10)
    assert wrong(known_answers.schedule(late, table, arrivals)) == {"arrival after the intended start: p50"}
    even = schedule.constant(len(arrivals) / 20, 20.0)[: len(arrivals)]
    shifted = with_column(table, "server_received_ns", START + even)
    assert wrong(known_answers.schedule(shifted, table, arrivals)) == {"arrival after the intended start: p50"}


def test_a_load_generator_that_plans_otherwise_fails() -> None:
    arrivals, table = poisson(), mixed_record()
    name = {"requests not planned by the schedule"}
    assert wrong(known_answers.schedule(table.slice(0, len(table) - 1), table, arrivals)) == name
    moved = with_column(table, "intended_ns", table["intended_ns"].to_numpy() + (np.arange(len(table)) == 50))
    assert wrong(known_answers.schedule(moved, table, arrivals)) == name
    assert known_answers.schedule(table.slice(0, 0), table, arrivals)[0].measured == 2 * len(arrivals)


def test_a_load_generator_that_forgets_its_slowest_answers_fails() -> None:
    table = mixed_record()
    kept = table.filter(pc.less(table["infer_ns"], 8 * MS))
    assert known_answers.answered([kept], len(table)).ok is False
    assert known_answers.answered([table, table], 2 * len(table)).ok is True


def test_a_load_generator_that_sends_nothing_while_the_server_stalls_fails() -> None:
    """It dates what the schedule wanted to when it could send it: the server's own times show nothing."""
    arrivals = poisson()
    waits = np.rint(stalled(arrivals) * MS).astype(np.int64)
    postponed = record(arrivals + waits, np.zeros(len(arrivals)))
    assert wrong(known_answers.stall(postponed, arrivals, 5.0, 1.0)) == {"stall: p99"}


def test_a_p99_that_cannot_be_had_fails_and_can_be_written() -> None:
    table = mixed_record()
    failing = with_column(table, "status", np.resize([200, 0], len(table)))
    checks = [*known_answers.mixed(failing, table), known_answers.answered([failing], len(table))]
    assert wrong(checks) == {"requests answered"}
    nothing = by_name(known_answers.known(table.slice(0, 1), table, DELAYS))["known delays: p50 of 20 ms"]
    assert (nothing.measured, nothing.ok) == (None, False)
    assert msgspec.json.decode(msgspec.json.encode(checks), type=list[Check]) == checks


def test_the_send_lag_is_shown() -> None:
    even = record(schedule.constant(500, 20), np.zeros(1))
    late = with_column(even, "sent_ns", even["sent_ns"].to_numpy() + 3 * MS)
    assert [check.measured for check in known_answers.sending(even)] == [0, 0]
    assert [check.measured for check in known_answers.sending(late)] == [3, 3]


def line(measured: float | None, ok: bool | None, limit: float | None = 1.0) -> Check:
    return Check(name="p50", measured=measured, truth=10.0, limit=limit, unit="ms", ok=ok)


@given(st.lists(st.floats(0, 20), min_size=1, max_size=9))
def test_of_repetitions_the_worst_is_judged(measured: list[float]) -> None:
    tried = [[line(value, abs(value - 10) <= 1)] for value in measured]
    (found,) = known_answers.of_repetitions(tried, " at 50/s")
    assert found.ok is all(check.ok for (check,) in tried)
    assert abs((found.measured or 0.0) - 10) == max(abs(value - 10) for value in measured)
    assert found.name == "p50 at 50/s" + (f", worst of {len(measured)}" if len(measured) > 1 else "")


def test_one_disturbed_repetition_of_three_fails_nothing_and_a_wrong_generator_fails_all() -> None:
    def of_three(*measured: float | None) -> Check:
        tried = [[line(value, value is not None and abs(value - 10) <= 1)] for value in measured]
        return known_answers.of_repetitions(tried, "", "median")[0]

    assert of_three(10.1, 14.0, 9.8).ok
    assert of_three(10.1, None, 9.8).ok
    assert not of_three(11.5, 10.2, 11.4).ok
    assert not of_three(8.0, 8.5, 9.9).ok
    dropped = [[line(value, value == 10, limit=0.0)] for value in (10.0, 9.0, 10.0)]
    assert not known_answers.of_repetitions(dropped, "", "median")[0].ok, "no repetition may lose a request"


def test_what_cannot_be_measured_is_the_worst_and_of_what_is_shown_the_middle_one_stands() -> None:
    (found,) = known_answers.of_repetitions([[line(10.0, True)], [line(None, False)], [line(30.0, False)]], "")
    assert (found.measured, found.ok) == (None, False)
    (found,) = known_answers.of_repetitions([[line(value, None, None)] for value in (3.0, 900.0, 4.0)], "")
    assert (found.name, found.measured) == ("p50, median of 3", 4.0)


@pytest.mark.full
def test_a_short_run_of_the_real_parts(stage: Stage, tmp_path: Path) -> None:
    """Whether the checks of time hold is the machine's affair; here none may be missing, and each has its record."""
    out = tmp_path / "selftest"
    words = ["--rate", "60", "--seconds", "1", "--size", "28,64", "--out", str(out)]
    done = stage("loadtest", "selftest", *words, "--json")
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr
    found = store.read_json(out / "selftest.json", SelfTest)
    assert msgspec.json.decode(done.stdout, type=SelfTest) == found
    assert (done.returncode == 1) == bool(found.failed)
    assert set(found.roofline) == {28, 64}
    assert min(found.roofline.values()) > 0
    # On a busy machine it fails, and is repeated.
    names = [re.sub(r" at 60/s(, (worst|median) of 3)?$", "", check.name) for check in found.checks]
    assert names == [
        *(f"known delays: p50 of {delay} ms" for delay in (0, 1, 5, 20)),
        *(f"mixed delays: {name}" for name in ("p50", "p90", "p99", "p99.9")),
        *("requests not planned by the schedule", "arrival after the intended start: p50"),
        *("send lag: p50", "send lag: p99"),
        *("stall: p99", "stall: uncorrected p99"),
        "requests answered",
    ]
    assert all(check.measured is not None for check in found.checks)
    assert found.checks[-1].ok is True
    runs = ("known", "known-before", "known-after", "mixed", "mixed-before", "mixed-after", "stall")
    expected = {re.sub(r"^(\w+)(.*)", r"\1-60-0\2.parquet", run) for run in runs}
    first = {name for name in found.files if not re.search(r"-60-[12]", name)}
    assert first == expected | {"roofline-28.parquet", "roofline-64.parquet"}
    assert len(found.files) in (9, 23)
    store.check_digests(out, found.files)
    # Everything that is judged follows from the records again.
    for check in found.checks[4:8]:
        again = []
        for path in out.glob("mixed-60-?.parquet"):
            beside = [samples.read(path.with_stem(f"{path.stem}-{when}")) for when in ("before", "after")]
            again += known_answers.mixed(samples.read(path), pa.concat_tables(beside))
        assert check.measured in [other.measured for other in again if check.name.startswith(other.name)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["selftest"]


@pytest.mark.full
@pytest.mark.parametrize("fault", ["lost_stall", "dropped_request", "closed_loop", "wrong_schedule"])
def test_a_generator_that_is_wrong_fails_its_self_test(stage: Stage, fault: str) -> None:
    """Whether one that is late is found depends on the machine: `python -m loadtest.benchmark selftest` counts it."""
    done = stage("loadtest.benchmark", "selftest", "--runs", "1", "--only", fault, "--json")
    assert done.returncode == 0, done.stderr
    (line,) = json.loads(done.stdout)
    assert (line["name"], line["value"]) == (f"{fault}: fails", 100.0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rate", "fast"], "--rate is 'fast'; expected numbers with commas, as in 50,200"),
        (["--rate", "0"], "0 requests per second for 3 s are too few to judge; expected 50 requests at least"),
        (["--size", "4"], "size 4 px; expected 8 to 1024"),
        (["--size", ""], "a self-test needs at least one size and one rate"),
        (["--out", "{taken}"], "holds something other than a self-test; give another --out"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_one_line(
    stage: Stage, tmp_path: Path, words: list[str], message: str
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    done = stage("medserve.cli", "selftest", *(word.format(taken=tmp_path) for word in words))
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert (tmp_path / "thesis.tex").is_file()


def made_selftest(ok: bool, roofline: float = 9000.0) -> SelfTest:
    check = Check(name="mixed delays: p50 at 100/s", measured=2.2, truth=2.0, limit=0.15, unit="ms", ok=ok)
    shown = Check(name="null: p50 at 100/s", measured=0.2, truth=None, limit=None, unit="ms", ok=None)
    return SelfTest(started="2026-11-20T08:00:00+00:00", seconds=20.0, roofline={28: roofline}, checks=(shown, check))


def test_a_failed_check_is_one_line_with_numbers() -> None:
    assert selftest.why_failed(made_selftest(True)) is None
    assert selftest.why_failed(made_selftest(False)) == (
        "load-generator self-test failed: mixed delays: p50 at 100/s is 2.20, the truth is 2.00 ms "
        "(may differ by 0.150)"
    )
    table = selftest.as_text(made_selftest(False)).splitlines()
    assert table[2].split() == ["mixed", "delays:", "p50", "at", "100/s", "2.20", "2.00", "0.150", "ms", "FAILED"]
    assert table[3].split() == ["roofline", "of", "28", "px", "9,000", "requests/s"]


def test_the_report_says_how_the_self_test_ended(tmp_path: Path) -> None:
    study = made_run.study(frameworks=("pytorch",), sizes=(28,), launches=1)
    run = made_run.build(tmp_path / "run", study, lambda *_: 1.0)
    assert (measurement.checks(facts.read(run)), measurement.selftest_caution(facts.read(run))) == (None, None)
    store.write_json(run / "selftest" / "selftest.json", made_selftest(False))
    found = facts.read(run)
    text = document.markdown(page.compose(found, "run"))
    assert "### Load-generator self-test" in text
    assert "| mixed delays: p50 at 100/s | 2.20 | 2.00 | 0.150 | ms | **does not hold** |" in text
    assert "| 28 | 9,000 | 6,300 |" in text
    caution = "Load-generator self-test failed (1 check, first mixed delays: p50 at 100/s)"
    assert caution in text.split("## ")[0], "it must stand at the top"
    assert json.dumps(caution)[1:-1] in document.html(page.compose(found, "run"))
    with pytest.raises(BadInput):
        store.write_bytes(run / "selftest" / "selftest.json", b"{}")
        facts.read(run)
