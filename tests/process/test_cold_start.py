"""From the start of a server's process to its first answer."""

from pathlib import Path

import numpy as np
import pytest
from made_run import build, process_of, study

from loadtest.measure.server_process import ServerProcess
from loadtest.report import facts
from loadtest.report.sections import costs
from loadtest.results.table import read, rows
from medserve import store
from medserve.result import Result
from medserve.spec import Deployment
from medserve.study import Measure

PARTS = ("import_seconds", "load_seconds", "ready_seconds", "first_answer_seconds")


@pytest.mark.parametrize("side", [28, 29])
def test_a_server_is_timed_from_its_start_to_its_first_answer(empty: Path, tmp_path: Path, side: int) -> None:
    server = ServerProcess(empty, Deployment(artifact="empty", runtime="null"), (), tmp_path)
    try:
        server.wait_ready()
        server.answer_first(np.zeros((1, side, side, 3), np.uint8))
        found = server.facts()
    finally:
        server.stop()
    assert 0.05 < found["import_seconds"] < found["ready_seconds"]
    assert 0 < found["load_seconds"] <= found["ready_seconds"] - found["import_seconds"] + 0.002
    # A request that is refused is no answer, and no error here: the load that follows tells why.
    assert ("first_answer_seconds" in found) == (side == 28)
    if side == 28:
        assert found["first_answer_seconds"] >= found["ready_seconds"]
    assert "imported_ns" not in found


def test_a_dead_server_has_no_first_answer(empty: Path, tmp_path: Path) -> None:
    server = ServerProcess(empty, Deployment(artifact="empty", runtime="null"), (), tmp_path)
    server.wait_ready()
    server.stop()
    server.answer_first(np.zeros((1, 28, 28, 3), np.uint8))
    assert "first_answer_seconds" not in server.facts()


def test_the_costs_say_import_load_and_first_answer(tmp_path: Path) -> None:
    import msgspec

    made = study(sizes=(28,), frameworks=("pytorch",), measure=(Measure(profiles=("closed-1",)),))
    run = build(tmp_path / "made", made, lambda *_: 1.0)
    for path in run.glob("results/*/*/result.json"):
        result = store.read_json(path, Result)
        process = process_of(result.cell)
        server = process["server"] | {name: place + result.launch for place, name in enumerate(PARTS)}
        store.write_json(path, msgspec.structs.replace(result, process=process | {"server": server}))
    assert {tuple(getattr(row, name) for name in PARTS) for row in rows(read(run))} == {(1, 2, 3, 4)}
    table = costs.serving(facts.read(run))
    assert table is not None
    heads = [column.title for column in table.columns]
    line = next(line for line in table.lines if line.cells[0].text == "PyTorch")
    values = dict(zip(heads, (cell.value for cell in line.cells), strict=True))
    assert (values["importing"], values["loading"], values["start to ready"], values["to the first answer"]) == (
        1,
        2,
        3,
        4,
    )
    assert values["per correct prediction"] == pytest.approx(values["per request"] / 0.97)
