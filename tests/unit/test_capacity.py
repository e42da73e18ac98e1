"""Loads as shares of the capacity, of known servers: utilisation, growing queues, the rate that holds an objective."""

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_run import MS, Columns, build, study

from loadtest.benchmark import queues
from loadtest.generator import schedule
from loadtest.report import facts
from loadtest.report.sections import answer, load
from loadtest.results import capacity
from loadtest.results.row import Row
from loadtest.results.table import read, rows
from medserve import store
from medserve.errors import BadInput
from medserve.matrix import plan
from medserve.numbers import number
from medserve.result import Result
from medserve.spec import Cell
from medserve.study import Measure, Objective, Study
from medserve.tables import find_profile

INFER, BESIDE = 1.6, 0.4
"""Milliseconds that a request takes in the server's stages, and beside them: it completes 500 per second."""
SLOWER = 1.1
"""By how much its predictions are slower under the loads than when its capacity was measured."""
SECONDS = 20.0
LOADS = ("load-20", "load-50", "load-80", "load-150")
ASKED = study(
    sizes=(28,), frameworks=("pytorch",), formats=("native", "onnx"), launches=2,
    objective=Objective(p99_ms=15.0), measure=(Measure(profiles=LOADS, seconds=SECONDS, warmup_seconds=0.0),),
)  # fmt: skip


def rate(cell: Cell) -> float:
    return (cell.profile.load or 0.0) * 1000 / (INFER + BESIDE)


def served(cell: Cell, _: Columns) -> Columns:
    """A server that answers one request at a time, to eight users back to back or to Poisson arrivals."""
    if cell.profile.load is None:
        count = 4000
        took = np.full(count, INFER * MS)
        done = np.cumsum(took + BESIDE * MS).astype(np.int64)
        sent = np.concatenate([np.zeros(8, np.int64), done[:-8]])
        columns = {"sent_ns": sent, "done_ns": done}
    else:
        sent = schedule.poisson(rate(cell), SECONDS, seed=len(cell.name))
        took = np.full(len(sent), SLOWER * INFER * MS)
        latencies = queues.queued(sent.astype(np.float64), took + BESIDE * MS)
        columns = {"intended_ns": sent, "sent_ns": sent, "done_ns": sent + latencies.astype(np.int64)}
    count = len(sent)
    columns |= {"status": np.full(count, 200), "batch": np.ones(count, int), "warmup": np.zeros(count, bool)}
    return columns | {
        "infer_ns": took.astype(np.int64),
        "decode_ns": np.zeros(count, int),
        "encode_ns": np.zeros(count, int),
    }


def simulated(tmp_path: Path) -> Path:
    run = build(tmp_path / "run", ASKED, lambda *_: 1.0, change=served)
    for path in run.glob("results/*/*/result.json"):
        result = store.read_json(path, Result)
        if result.cell.profile.load is not None:
            profile = msgspec.structs.replace(result.cell.profile, rate=rate(result.cell))
            cell = msgspec.structs.replace(result.cell, profile=profile)
            store.write_json(path, msgspec.structs.replace(result, cell=cell))
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulated(tmp_path_factory.mktemp("loads"))


def picked(run: Path) -> dict[str, Row]:
    found = {row.profile: row for row in rows(read(run)) if row.runtime == "onnx_runtime"}
    assert list(found) == ["closed-8", *LOADS], "the capacity comes first, and the server without a model has no load"
    return found


def test_utilisation_is_what_the_server_did_and_not_what_was_asked(run: Path) -> None:
    found = picked(run)
    for name in LOADS[:3]:
        asked = found[name].load
        assert found[name].rate_asked == pytest.approx(500 * asked)
        # Slower predictions fill more of its time than was asked for.
        truth = found[name].rate_delivered * (SLOWER * INFER + BESIDE) / 1000
        assert found[name].utilisation == pytest.approx(truth, rel=0.01)
        assert found[name].utilisation > 1.03 * asked
    assert found["closed-8"].utilisation is None


def test_beyond_capacity_there_is_no_latency_but_what_is_completed(run: Path) -> None:
    found = picked(run)
    assert [found[name].overloaded for name in LOADS] == [False, False, False, True]
    beyond = found["load-150"]
    assert (beyond.p50.value, beyond.p99.value) == (None, None)
    assert beyond.rate_delivered == pytest.approx(1000 / (SLOWER * INFER + BESIDE), rel=0.01)
    assert "beyond capacity: latency depends on duration; 463 requests/s are completed" in str(beyond.reason)
    # In time are those of the first second, before the queue is 15 ms long.
    assert beyond.goodput < 0.02 * beyond.rate_delivered
    assert found["load-20"].goodput == pytest.approx(found["load-20"].rate_delivered, rel=0.01)


def test_a_queue_that_comes_and_goes_is_a_steady_state(run: Path) -> None:
    assert all(row.steady for name, row in picked(run).items() if name != "closed-8")


def test_the_report_says_who_holds_the_objective_up_to_which_rate(run: Path) -> None:
    found = facts.read(run)
    known = load.capacities(found)
    assert {one.row.runtime for one in known} == {"torchscript", "onnx_runtime"}
    row = picked(run)
    for one in known:
        assert one.words == ""
        assert row["load-50"].rate_asked < one.rate.value < row["load-150"].rate_asked
    said = "".join(piece.text for piece in answer.sentences(found)[0])
    assert "p99 < 15 ms: " in said
    assert "holds it up to " in said
    table = load.held_up_to(found)
    assert table is not None
    assert [line.cells[-1].text for line in table.lines] == [
        number(one.rate.value) for row in table_rows(found) for one in known if one.row.deployment == row
    ]
    loads = load.loads(found)
    assert loads is not None
    assert sum("depends on duration" in line.cells[-1].text for line in loads.lines) == 2
    assert load.utilisation(found) is not None


def table_rows(found: facts.Facts) -> list[str]:
    """The deployments in the order of the study."""
    return [row.deployment for row in found.rows if row.profile == "closed-8" and row.framework]


def test_what_is_too_inaccurate_for_the_objective_has_no_rate(run: Path) -> None:
    study = store.read_json(run / "study.json", Study)
    for least, inaccurate in ((0.5, 0), (0.999, 2)):
        asked = msgspec.structs.replace(study, objective=Objective(p99_ms=15.0, accuracy=least))
        store.write_json(run / "study.json", asked)
        found = facts.read(run)
        assert sum(one.words == load.INACCURATE for one in load.capacities(found)) == inaccurate
        table = load.held_up_to(found)
        assert table is not None
        assert sum(line.cells[-1].text == load.INACCURATE for line in table.lines) == inaccurate
    store.write_json(run / "study.json", study)


@given(st.floats(1.1, 40.0), st.floats(1.05, 8.0))
def test_the_rate_that_holds_a_limit_lies_where_the_percentile_crosses_it(limit: float, factor: float) -> None:
    """Percentiles that grow by a power of the rate: the line through their logarithms is exact."""
    loads = [({0: at, 1: at * factor}, {0: (at / 100) ** 2, 1: (at / 100) ** 2}) for at in (100.0, 200.0, 400.0, 800.0)]
    found, words = capacity.rate_within(loads, limit)
    assert words == ""
    assert found.value == pytest.approx(100 * math.sqrt(limit) * math.sqrt(factor))
    assert found.low < found.value < found.high


def test_a_limit_beyond_the_loads_is_a_bound_and_launches_that_disagree_are_none() -> None:
    loads = [({0: at, 1: at}, {0: at / 100, 1: at / 50}) for at in (100.0, 200.0)]
    assert capacity.rate_within(loads, 10.0) == (capacity.Interval(low=200.0), "at least")
    assert capacity.rate_within(loads, 0.5) == (capacity.Interval(high=100.0), "below")
    assert capacity.rate_within(loads, 3.0)[0].low == pytest.approx(150.0), "one launch holds it at all rates"
    apart = [({0: at, 1: at}, {0: 1.0, 1: 10.0}) for at in (100.0, 200.0)]
    assert capacity.rate_within(apart, 3.0)[0].reason == "its launches disagree"
    endless = [({0: 100.0}, {0: 1.0}), ({0: 200.0}, {0: math.inf})]
    assert capacity.rate_within(endless, 3.0)[0].value == pytest.approx(100), "the last rate without a queue that grows"


def test_a_load_is_a_profile_of_any_share_and_has_its_capacity_before_it() -> None:
    assert find_profile("load-75").load == 0.75
    assert find_profile("load-120").arrivals == "poisson"
    with pytest.raises(BadInput, match="load-80"):
        find_profile("laod-80")
    (measured, *_) = plan(ASKED).deployed
    assert [profile.name for profile in measured.profiles] == ["closed-8", *LOADS]
    assert {profile.capacity for profile in measured.profiles[1:]} == {"closed-8"}
    batching = study(
        sizes=(28,), frameworks=("pytorch",), formats=("native",), dispatch="thread", batch_images=(1, 16),
        batch_sizes=(1, 16, 32), measure=(Measure(profiles=("load-50",)),), null=False,
    )  # fmt: skip
    assert [one.name for one in plan(batching).deployed[0].profiles] == ["closed-32", "load-50"]
    with pytest.raises(BadInput, match="'rate', or measure loads"):
        plan(study(objective=Objective(p99_ms=5.0)))
    with pytest.raises(BadInput, match="needs a 'rate' or a 'load'"):
        plan(study(measure=(Measure(mode="open-loop", rate=50.0, load=0.5),)))


@pytest.mark.parametrize("utilised", [0.5, 0.8])
def test_simulated_queues_wait_as_theory_says(utilised: float) -> None:
    """The schedule and the reduction of records; `make bench-statistics` has ten times as many, within 1 %."""
    for line in queues.theory(10**5, (utilised,)):
        assert abs(line.value or 0.0) < 5, line
