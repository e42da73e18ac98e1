"""What a row may not claim: each rule breaks the row that breaks it, says why, and leaves the others alone."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from made_run import MS, Change, Columns, build, study
from msgspec.structs import replace

from loadtest import samples
from loadtest.results.row import Row
from loadtest.results.table import read, rows
from loadtest.results.writers import render, short
from medserve import store
from medserve.result import Check, Result, SelfTest, SelfTestOutcome, Window
from medserve.spec import Cell
from medserve.study import Deployed, Measure
from medserve.tables import Limits

OPEN = "open-50"
LADDER = ("closed-1", "closed-2", "closed-8")
POWER = {1: 1.0, 2: 1.2, 8: 4.6}
"""Latency of one request by users."""
FINE = Check(name="slope", measured=1.0, truth=1.0, limit=0.02, unit="", ok=True)


def latency(deployed: Deployed, cell: Cell, index: int) -> float:
    return (
        POWER.get(cell.profile.users, 1.0) * (1.0, 1.001)[index] * (0.1 if deployed.deployment.runtime == "null" else 1)
    )


def made(tmp_path: Path, *profiles: str, **how: Any) -> Path:
    asked = study(
        sizes=(28,), frameworks=("pytorch",), formats=("native",), launches=2, measure=(Measure(profiles=profiles),)
    )
    return build(tmp_path / "run", asked, latency, **how)


def with_selftest(run: Path, *checks: Check, roofline: float = 1e6) -> None:
    found = SelfTest(started="", seconds=1.0, roofline={28: roofline}, checks=checks or (FINE,))
    store.write_json(run / "selftest" / "selftest.json", found)


def pick(run: Path, profile: str, runtime: str = "torchscript") -> Row:
    (row,) = [row for row in rows(read(run)) if (row.profile, row.runtime) == (profile, runtime)]
    return row


def at(profile: str, change: Any) -> Change:
    """Change only the records of one profile."""
    return lambda cell, columns: change(columns) if cell.profile.name == profile else columns


def test_two_populations_of_latency_are_flagged_not_averaged_away(tmp_path: Path) -> None:
    def two(columns: Columns) -> Columns:
        took = columns["done_ns"] - columns["sent_ns"]
        slow = np.random.default_rng(0).random(len(took)) < 0.3
        return columns | {"done_ns": columns["sent_ns"] + np.where(slow, 3 * took, took // 2)}

    run = made(tmp_path, "in-process-1", change=at("in-process-1", two))
    row = pick(run, "in-process-1")
    assert row.bimodal is True
    assert "bimodal: " in row.reason
    assert row.valid


def test_launches_that_only_rise_are_flagged(tmp_path: Path) -> None:
    asked = study(
        sizes=(28,), frameworks=("pytorch",), formats=("native",), launches=5, measure=(Measure(profiles=(OPEN,)),)
    )
    run = build(tmp_path / "run", asked, lambda deployed, cell, index: 1.0 + 0.1 * index)
    row = pick(run, OPEN)
    assert row.drifting is True
    assert "only rise, from 1 to 1.4 ms" in row.reason


def test_a_run_without_faults_has_valid_rows_and_nothing_to_say(tmp_path: Path) -> None:
    run = made(tmp_path, "in-process-1", OPEN)
    with_selftest(run)
    row = pick(run, OPEN)
    assert (row.valid, row.reason, row.steady, row.saturation, row.cached) == (
        True,
        None,
        True,
        None,
        None,
    )
    assert row.p50_service_ms == pytest.approx(0.98 * row.p50.value, rel=1e-3)
    assert row.p50_uncorrected_ms == row.p50_service_ms
    assert (row.lag_p50_us, row.lag_p99_us) == (pytest.approx(20.01), pytest.approx(20.01))
    assert pick(run, "in-process-1").p50_service_ms is None


def test_a_missing_selftest_is_a_reason_and_a_failed_one_makes_every_row_invalid(tmp_path: Path) -> None:
    run = made(tmp_path, "in-process-1", OPEN)
    row = pick(run, OPEN)
    assert (row.valid, row.reason) == (True, "this run has no self-test of the load generator")
    assert pick(run, "in-process-1").reason is None
    with_selftest(run, FINE, Check(name="planted stall", measured=4.0, truth=1000.0, limit=50.0, unit="ms", ok=False))
    for row in rows(read(run)):
        assert not row.valid
        assert "load-generator self-test failed: planted stall" in row.reason


def test_a_row_is_tied_to_the_self_test_before_it(tmp_path: Path) -> None:
    run = made(tmp_path, "in-process-1", "closed-1")
    with_selftest(run)
    failed = SelfTestOutcome(
        started="2026-11-20T08:00:00+00:00", failed="load-generator self-test failed: planted stall"
    )
    for path in run.glob("results/*in-process-1/1/result.json"):
        store.write_json(path, msgspec.structs.replace(store.read_json(path, Result), selftest=failed))
    assert pick(run, "closed-1").valid
    row = pick(run, "in-process-1")
    assert not row.valid
    assert "planted stall" in row.reason
    # A record that is tied to one that held stays valid when another one fails later.
    for path in run.glob("results/*/*/result.json"):
        held = SelfTestOutcome(started=failed.started)
        store.write_json(path, msgspec.structs.replace(store.read_json(path, Result), selftest=held))
    with_selftest(run, Check(name="planted stall", measured=4.0, truth=1000.0, limit=50.0, unit="ms", ok=False))
    assert pick(run, "in-process-1").valid


def held_up(columns: Columns) -> Columns:
    """The client is late with every request by half of what it takes."""
    return columns | {"sent_ns": columns["intended_ns"] + MS // 2, "done_ns": columns["done_ns"] + MS // 2}


def test_a_late_client_makes_a_row_invalid(tmp_path: Path) -> None:
    run = made(tmp_path, OPEN, "closed-1", change=at(OPEN, held_up))
    with_selftest(run)
    row = pick(run, OPEN)
    assert not row.valid
    assert row.reason.startswith("the client sent late: p50 from the intended start is 50 % above")
    assert pick(run, "closed-1").valid
    assert "invalid" in render([row], "markdown")
    assert "!" in str([cell.text for table in short([row])[0] for line in table.lines for cell in line.cells])


def test_waiting_for_a_server_that_holds_every_connection_is_not_the_clients_fault(tmp_path: Path) -> None:
    # Eight connections, a request each millisecond, and a server that answers each 20 ms after its sending.
    due = np.arange(800) * MS
    sent, free = [], [0] * 8
    for start in due.tolist():
        sent.append(max(start, min(free)))
        free[free.index(min(free))] = sent[-1] + 20 * MS
    columns = {"intended_ns": due, "sent_ns": sent, "done_ns": np.array(sent) + 20 * MS}
    plain = {"status": np.full(800, 200), "batch": np.ones(800, int), "warmup": np.zeros(800, bool)}
    run = made(tmp_path, OPEN, change=lambda cell, _: columns | plain)
    with_selftest(run)
    with_limits(run, connections=8)
    row = pick(run, OPEN)
    assert row.valid
    assert row.overloaded
    assert row.p50.value is None
    assert row.p50_service_ms == pytest.approx(20)
    assert "beyond capacity: latency depends on duration; 40.0 requests/s are completed" in row.reason
    with_limits(run, connections=1000)
    assert "the client sent late" in pick(run, OPEN).reason


def with_limits(run: Path, **limits: float) -> None:
    """Record other limits in every result."""
    for path in run.glob("results/*/*/result.json"):
        result = store.read_json(path, Result)
        store.write_json(path, replace(result, limits=Limits(**limits)))


def test_a_row_is_judged_by_the_limits_that_were_recorded_with_it(tmp_path: Path) -> None:
    """A late client, a change of level, a caching server and a high rate: each flag follows its recorded limit."""
    took = np.tile([5 * MS, 4 * MS], 32)
    sent = np.arange(64) * 10 * MS
    audit = {"sent_ns": sent, "done_ns": sent + took, "status": [200] * 64, "batch": [1] * 64, "warmup": [False] * 64}

    def slower(columns: Columns) -> Columns:
        factor = np.where(np.arange(len(columns["sent_ns"])) < 250, 1, 4)
        return columns | {"done_ns": columns["sent_ns"] + factor * (columns["done_ns"] - columns["sent_ns"])}

    changes = {OPEN: held_up, "closed-1": slower}
    run = made(tmp_path, OPEN, "closed-1", change=lambda cell, found: changes[cell.profile.name](found))
    for folder in run.glob("results/*torchscript.torchscript*closed-1/*"):
        samples.write(folder / "audit.parquet", audit)
        result = store.read_json(folder / "result.json", Result)
        store.write_json(folder / "result.json", replace(result, files=store.digests(folder, without="result.json")))
    with_selftest(run, roofline=1000.0)
    strict = pick(run, OPEN), pick(run, "closed-1")
    assert "the client sent late" in strict[0].reason
    assert (strict[1].steady, strict[1].cached) == (False, True)
    with_limits(run, lateness=2.0, level=5.0, cached=0.5)
    tolerant = pick(run, OPEN), pick(run, "closed-1")
    assert "the client sent late" not in str(tolerant[0].reason)
    assert (tolerant[1].steady, tolerant[1].cached, tolerant[1].valid) == (True, False, True)
    path = run / "selftest" / "selftest.json"
    store.write_json(path, replace(store.read_json(path, SelfTest), roofline_limit=0.01))
    assert "of the generator's roofline, 1,000 (limit 1 %)" in pick(run, OPEN).reason


def test_a_cell_near_the_generators_roofline_is_refused_but_not_the_floor_nor_one_user(tmp_path: Path) -> None:
    # The made closed loops answer 333, 278 and 72 a second.
    run = made(tmp_path, *LADDER)
    with_selftest(run, roofline=350.0)
    assert pick(run, "closed-1").valid
    row = pick(run, "closed-2")
    assert not row.valid
    assert "requests/s are 79 % of the generator's roofline, 350 (limit 70 %)" in row.reason
    assert pick(run, "closed-8").valid
    assert pick(run, "closed-2", "null").valid


def test_beyond_the_saturation_point_latency_is_removed_and_throughput_is_kept(tmp_path: Path) -> None:
    run = made(tmp_path, *LADDER, "idle-10ms", change=lambda cell, columns: columns | busy(cell, columns))
    with_selftest(run)
    one, two, eight = (pick(run, profile) for profile in LADDER)
    assert [row.saturation for row in (one, two, eight)] == [False, True, False]
    assert two.p50.value == pytest.approx(1.2, rel=1e-2)
    assert (eight.p50.value, eight.p99.high) == (None, None)
    assert eight.throughput > two.throughput
    assert "beyond the saturation point (2 users)" in eight.reason
    assert eight.valid
    assert pick(run, "idle-10ms").saturation is None


def busy(cell: Cell, columns: Columns) -> Columns:
    """As many requests at a time as there are users."""
    took = columns["done_ns"] - columns["sent_ns"]
    sent = np.arange(len(took)) * int(POWER[cell.profile.users] * MS / cell.profile.users)
    return {"sent_ns": sent, "done_ns": sent + took}


def test_a_run_that_never_settles_says_so_and_stays_valid(tmp_path: Path) -> None:
    def slower(columns: Columns) -> Columns:
        took = columns["done_ns"] - columns["sent_ns"]
        took[250:] *= 4
        return columns | {"done_ns": columns["sent_ns"] + took}

    run = made(tmp_path, "closed-1", change=at("closed-1", slower))
    with_selftest(run)
    row = pick(run, "closed-1")
    assert (row.steady, row.valid) == (False, True)
    assert "no steady state: median rose from 0.996 ms to 4" in row.reason
    assert "(in 2 of 2 launches)" in row.reason


def test_too_few_requests_leave_the_steady_state_open(tmp_path: Path) -> None:
    assert pick(made(tmp_path, "closed-1", count=30), "closed-1").steady is None


def test_disturbed_windows_are_counted_with_their_reason(tmp_path: Path) -> None:
    calm = Window(start_ns=0, end_ns=1, stolen=0, others=0, throttled=0, switches=1, load=1.0, reason=None)
    stolen = Window(
        start_ns=1, end_ns=2, stolen=0.3, others=0, throttled=0, switches=1, load=1.0, reason="30 % of a core stolen"
    )
    run = made(tmp_path, "closed-1", "in-process-1", windows=(calm, calm, stolen))
    with_selftest(run)
    row = pick(run, "closed-1")
    assert (row.windows, row.disturbed, row.valid) == (6, 2, True)
    assert "2 of 6 windows disturbed: 30 % of a core stolen" in row.reason
    assert "disturbed" in render([row], "markdown")
    assert (pick(run, "in-process-1").windows, pick(run, "in-process-1").disturbed) == (0, 0)


@pytest.mark.parametrize(("second", "cached"), [(0.2, True), (1.0, False)])
def test_a_caching_server_makes_all_its_rows_over_http_invalid(tmp_path: Path, second: float, cached: bool) -> None:
    run = made(tmp_path, "in-process-1", "closed-1", OPEN)
    with_selftest(run)
    took = np.tile([5 * MS, int(second * 5 * MS)], 32)
    sent = np.arange(64) * 10 * MS
    columns = {"sent_ns": sent, "done_ns": sent + took, "status": [200] * 64, "batch": [1] * 64, "warmup": [False] * 64}
    for folder in (run / "results").glob("*torchscript.torchscript*closed-1/*"):
        samples.write(folder / "audit.parquet", columns)
        result = store.read_json(folder / "result.json", Result)
        files = store.digests(folder, without="result.json")
        store.write_json(folder / "result.json", Result(**{**_fields(result), "files": files}))
    for profile in ("closed-1", OPEN):
        row = pick(run, profile)
        assert (row.cached, row.valid) == (cached, not cached)
        assert ("the server caches" in str(row.reason)) == cached
    assert pick(run, "in-process-1").valid
    assert pick(run, "closed-1", "null").cached is None


def _fields(result: Result) -> dict[str, Any]:
    return {name: getattr(result, name) for name in result.__struct_fields__}


def test_wrong_answers_are_counted_among_the_failed(tmp_path: Path) -> None:
    def wrong(columns: Columns) -> Columns:
        return columns | {"wrong": np.arange(len(columns["sent_ns"])) < 3}

    row = pick(made(tmp_path, "closed-1", change=at("closed-1", wrong)), "closed-1")
    assert (row.wrong, row.failed) == (6, 6)
