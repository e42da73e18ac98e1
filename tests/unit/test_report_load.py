"""The report of a run that has a ladder of users, idle gaps and several schedules: known figures in their places."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_run import LAG, MS, PARTS, Columns, build, study
from test_report import Reader

from loadtest.report import facts, page
from loadtest.report.sections import breakdown, load, measurement
from loadtest.results.tabular import Table
from medserve import store
from medserve.numbers import ABSENT
from medserve.result import Check, SelfTest, Window
from medserve.spec import Cell
from medserve.study import Deployed, Measure, Objective

USERS = {1: 1.0, 2: 1.2, 4: 2.1, 8: 4.0}
"""Median milliseconds by users: two fill the server."""
PROFILES = (
    "in-process-1",
    *(f"closed-{users}" for users in USERS),
    "idle-10ms",
    "idle-1000ms",
    "open-50",
    "poisson-50",
)


def latency(deployed: Deployed, cell: Cell, index: int) -> float:
    profile = cell.profile
    if deployed.deployment.runtime == "null":
        return 0.2 * (1.0, 1.001)[index]
    value = (
        USERS[profile.users] if profile.mode == "closed-loop" else {"in-process": 0.75, "open-loop": 1.0}[profile.mode]
    )
    return value * (1 + 2 * profile.gap_seconds) * (1.0, 1.001)[index]


def busy(cell: Cell, columns: Columns) -> Columns:
    """As many requests under way as there are users, and a planted stall in the closed loop of one user."""
    if cell.profile.mode != "closed-loop" or cell.profile.gap_seconds:
        return columns
    begun = np.arange(len(columns["sent_ns"])) * int(USERS[cell.profile.users] * MS / cell.profile.users)
    shift = begun - columns["sent_ns"]
    stamps = ("sent_ns", "done_ns", "server_received_ns", "server_sent_ns", "first_byte_ns")
    return columns | {name: columns[name] + shift for name in stamps}


WINDOWS = tuple(
    Window(start_ns=0, end_ns=1, stolen=0.0, others=0.0, throttled=0, switches=0, load=0.5, reason=reason)
    for reason in (None, None, "another process took 40 % of a measured core")
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "made"
    asked = study(
        sizes=(28,),
        frameworks=("pytorch",),
        launches=2,
        measure=(Measure(profiles=PROFILES),),
        title="A run under load",
    )
    build(folder, asked, latency, change=busy, windows=WINDOWS)
    slope = Check(name="slope", measured=1.0, truth=1.0, limit=0.02, unit="", ok=True)
    tested = SelfTest(started="", seconds=1.0, roofline={28: 1e6}, checks=(slope,))
    store.write_json(folder / "selftest" / "selftest.json", tested)
    page.write(folder)
    return folder


@pytest.fixture(scope="module")
def read(run: Path) -> facts.Facts:
    return facts.read(run)


def cells(table: Table | None, line: int = 0) -> dict[str, Any]:
    """The cells of a line by the headings of their columns."""
    assert table is not None
    heads = [" ".join(filter(None, (column.group, column.title))) for column in table.columns]
    return dict(zip(heads, table.lines[line].cells, strict=True))


def test_the_breakdown_of_each_deployment_has_the_parts_that_were_made(read: facts.Facts) -> None:
    opened, closed = breakdown.tables(read)
    row = cells(opened)
    assert row["Client client queue"].value == pytest.approx(LAG, rel=1e-2)
    assert row["Server infer"].value == pytest.approx(PARTS["infer"] * (1 - LAG), rel=1e-2)
    assert re.fullmatch(r"p99 0\.07\d+, 4\.9 %", row["All unattributed"].note)
    assert "Client client queue" not in cells(closed)
    assert cells(closed)["All total"].value == pytest.approx(1.0, rel=1e-2)


def test_the_cross_check_is_in_process_and_the_null_server(read: facts.Facts) -> None:
    row = cells(breakdown.tables(read)[1])
    assert row["Cross-check in process + null"].value == pytest.approx(0.95, rel=1e-2)
    assert row["Cross-check difference"].value == pytest.approx(0.05, abs=0.01)
    assert row["Cross-check difference"].note.endswith(" %")
    null = cells(breakdown.tables(read)[1], -1)
    assert null["Cross-check difference"].text == ABSENT


def test_every_schedule_has_latency_by_three_definitions(read: facts.Facts) -> None:
    table = load.definitions(read)
    row = cells(table)
    assert table is not None
    assert [line.cells[2].text for line in table.lines[:2]] == ["50/s", "50/s Poisson"]
    assert row["Rate asked"].value == 50
    assert row["p50 from intended start"].value == pytest.approx(1.0, rel=1e-2)
    assert row["p50 uncorrected"].value == pytest.approx(1 - LAG, rel=1e-2)
    assert row["p50 omitted"].value == pytest.approx(LAG, rel=2e-2)
    assert row["Send lag p50"].value == pytest.approx(1000 * LAG, rel=1e-2)


def test_closed_loops_have_latency_up_to_the_saturation_point(run: Path, read: facts.Facts) -> None:
    row = cells(load.ladder(read))
    assert row["2 users"].tone == "strong"
    assert "ms" in row["2 users"].note
    assert row["4 users"].note == ""
    assert row["8 users"].value > row["2 users"].value
    drawn = (run / "figures" / "ladder.svg").read_text()
    assert drawn.count("2 users: median 1.2") >= 1
    assert "(saturation point)" in drawn
    assert re.search(r"PyTorch[^\"]*, 4 users: median", drawn) is None
    assert re.search(r"8 users: 1,960 images/s", drawn)


def test_users_with_pauses_are_beside_the_busy_one(read: facts.Facts) -> None:
    row = cells(load.pauses(read))
    values = [row[f"Pause between requests {pause}"].value for pause in ("none", "10 ms", "1 s")]
    assert values == pytest.approx([1.0, 1.02, 3.0], rel=1e-2)


def test_main_tables_and_charts_leave_ladder_and_pauses_to_their_sections(run: Path, read: facts.Facts) -> None:
    text = (run / "report.md").read_text()
    first = text.partition("## Deployments")[2].partition("\n- ")[0]
    assert "users" not in first
    assert "pauses" not in first
    assert "closed loop: p50" in first
    assert "8 users" not in (run / "figures" / "latency-one-size.svg").read_text()


def test_disturbed_windows_and_steady_state_are_reported(run: Path, read: facts.Facts) -> None:
    row = cells(measurement.steadiness(read))
    # Eight cells over HTTP, two launches each, three windows per launch.
    assert (row["Windows monitored"].value, row["Windows disturbed"].value) == (48, 16)
    assert row["Steady state of its cells reached"].value == len(PROFILES)
    text = " ".join(Reader((run / "report.html").read_text()).text.split())
    assert "2 of 6 windows disturbed: another process took 40 % of a measured core" in text
    assert "48 of 144 windows of measuring were disturbed." in text


def test_nothing_is_shown_that_the_study_did_not_measure(tmp_path: Path) -> None:
    asked = study(sizes=(28,), frameworks=("pytorch",), measure=(Measure(profiles=("in-process-1",)),), launches=1)
    page.write(build(tmp_path / "run", asked, lambda *_: 1.0))
    text = (tmp_path / "run" / "report.md").read_text()
    for heading in (
        "Definitions of latency",
        "Where the time goes",
        "Closed loops by users",
        "Occasional requests",
        "Batches",
    ):
        assert heading not in text


@pytest.mark.parametrize(("limit", "best"), [(None, "8 images"), (2.0, "1 image"), (0.5, None)])
def test_the_best_batch_is_the_one_with_most_images_per_second_within_the_objective(
    limit: float | None, best: str | None, tmp_path: Path
) -> None:
    took = {1: 1.0, 8: 4.0, 32: 40.0}
    profiles = tuple(f"in-process-{batch}" for batch in took)
    wanted = None if limit is None else Objective(rate=10.0, p50_ms=limit)
    asked = study(sizes=(28,), frameworks=("pytorch",), measure=(Measure(profiles=profiles),), objective=wanted)
    made = build(tmp_path / "run", asked, lambda _, cell, index: took[cell.profile.batch] * (1.0, 1.01, 0.99)[index])
    table = load.batches(facts.read(made))
    assert table is not None
    titles = [column.title for column in table.columns]
    for line in table.lines:
        marked = [title for title, one in zip(titles, line.cells, strict=True) if one.tone == "strong"]
        assert marked == ([best] if best else [])
        assert all(one.value for one in line.cells[-3:])
