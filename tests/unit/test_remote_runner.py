"""Which worker gets which unit, by an engine that a test scripts; `tests/process/test_cluster.py` has the real one."""

import errno
import hashlib
import io
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medserve import machine, remote_runner, store, units
from medserve.errors import BadInput, CannotRun
from medserve.result import Result
from medserve.study import Measure, Study, check_shard
from medserve.units import Facts, Lost, Outcome, Part, Unit

STUDY = Study(
    name="mini",
    title="Mini",
    datasets=("synthetic",),
    sizes=(28,),
    architectures=("cnn", "resnet18"),
    frameworks=("pytorch", "flax_nnx"),
    formats=("native", "onnx"),
    measure=(Measure(profiles=("in-process-1",)),),
    launches=1,
)


def worker(kind: str = "any", host: str = "one", **versions: str) -> Facts:
    return Facts(kind=kind, host=host, folder="/nowhere", versions=machine.versions() | versions)


class Scripted:
    """Ends one unit per wait: `fate` says of each what comes of it."""

    def __init__(self, there: dict[str, Facts | None], fate: Callable[[Unit, str], Outcome | Exception | None]) -> None:
        self.there, self.fate = there, fate
        self.begun: dict[str, tuple[str, Unit]] = {}
        self.given: list[tuple[str, str]] = []
        self.kept: Counter[str] = Counter()
        self.ended: list[str] = []

    def workers(self) -> dict[str, Facts | None]:
        return self.there

    def ask(self, address: str, function: Callable[..., Any], *words: Any) -> Any:
        if function is units.missing:
            return list(words[-1])
        self.kept[words[-2]] += 1
        return None

    def submit(self, address: str, name: str, unit: Unit, home: str) -> None:
        assert address not in {busy for busy, _ in self.begun.values()}, "a second unit for a busy worker"
        facts = self.there[address]
        assert facts is not None
        for other, begun in self.begun.values():
            there = self.there[other]
            same = there is not None and there.host == facts.host
            assert not (same and begun.kind == "measure"), "a unit beside a measurement"
        assert name not in self.begun
        assert name not in self.ended
        self.begun[name] = address, unit
        self.given.append((name, address))

    def wait(self, seconds: float) -> Iterator[tuple[str, Outcome | Exception]]:
        for name, (address, unit) in list(self.begun.items()):
            found = self.fate(unit, address)
            if found is not None:
                del self.begun[name]
                if not isinstance(found, Lost) and not (isinstance(found, Outcome) and found.no_space):
                    self.ended.append(name)
                yield name, found


def made(unit: Unit) -> Outcome:
    """A folder with no more than a manifest."""
    if unit.kind == "measure":
        return Outcome()
    where, manifest = {"train": ("checkpoints", "checkpoint"), "export": ("artifacts", "artifact")}[unit.kind]
    with TemporaryDirectory() as folder:
        Path(folder, f"{manifest}.json").write_text("{}")
        return Outcome(parts={f"{where}/{unit.name}": units.pack(Path(folder))}, log=b"made\n")


def go(study: Study, out: Path, engine: Scripted, **words: Any) -> tuple[list[Path], int, list[str]]:
    said: list[str] = []
    runs, failed = remote_runner.run(study, out, lambda step: said.append(f"{step.state} {step.note}"), engine, **words)
    return runs, failed, said


def test_every_unit_is_done_once_and_those_that_are_done_are_not_asked_for_again(tmp_path: Path) -> None:
    engine = Scripted({"w1": worker(), "w2": worker(host="two")}, lambda unit, _: made(unit))
    runs, failed, _ = go(STUDY, tmp_path / "run", engine)
    assert (runs, failed) == ([tmp_path / "run"], 0)
    kinds = Counter(name.split(".")[0] for name in engine.ended)
    assert kinds == {"train": 4, "export": 8, "measure": 1}
    assert engine.ended[-1].startswith("measure")
    assert sorted(engine.ended) == sorted({*engine.ended})
    again = Scripted({"w1": worker()}, lambda unit, _: made(unit))
    go(STUDY, tmp_path / "run", again)
    assert [name.split(".")[0] for name in again.ended] == ["measure"]  # it made no results


@settings(max_examples=30)
@given(st.data())
def test_whatever_is_lost_no_unit_is_lost_doubled_or_beside_a_measurement(data: st.DataObject) -> None:
    there: dict[str, Facts | None] = {
        "w1": worker("a"), "w2": worker("a", "two"), "w3": worker("b"), "w4": worker("b", "two"), "alien": None,
    }  # fmt: skip
    losses = data.draw(st.lists(st.sampled_from(["done", "lost", "later"]), max_size=60))

    def fate(unit: Unit, address: str) -> Outcome | Exception | None:
        event = losses.pop() if losses else "done"
        return made(unit) if event == "done" else Lost("gone") if event == "lost" else None

    with TemporaryDirectory() as folder:
        engine = Scripted(there, fate)
        study = msgspec.structs.replace(STUDY, machines=("a", "b"))
        runs, failed, _ = go(study, Path(folder, "run"), engine, shards=2)
        assert failed == 0
        assert [run.relative_to(Path(folder, "run").resolve()).as_posix() for run in runs] == [
            f"shard-{shard}/machines/{kind}" for shard in (1, 2) for kind in ("a", "b")
        ]
        assert len(engine.ended) == len({*engine.ended}) == 4 + 8 + 4
        for name, address in engine.given:
            facts = there[address]
            assert facts is not None
            if name.startswith("measure"):
                assert facts.kind == name[-1]


def test_a_kind_that_no_worker_has_is_rows_with_the_reason(tmp_path: Path) -> None:
    engine = Scripted({"w1": worker("a")}, lambda unit, _: made(unit))
    study = msgspec.structs.replace(STUDY, machines=("a", "b"))
    _, failed, said = go(study, tmp_path / "run", engine, patience=0.0)
    assert failed == 1
    reasons = {
        store.read_json(path, Result).reason for path in (tmp_path / "run/machines/b/results").glob("*/*/result.json")
    }
    assert reasons == {"no worker of the kind b; there is: a"}
    assert any("no worker of the kind b" in line for line in said)


def test_without_any_worker_it_ends_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match="there is no worker; start one: medserve worker"):
        go(STUDY, tmp_path / "run", Scripted({}, lambda unit, _: made(unit)), patience=0.0)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (worker(python="3.9.1"), r"python 3\.9\.1, not 3\.\d+\.\d+"),
        (worker(medserve="0.0.1"), r"medserve 0\.0\.1, not "),
        (worker(numpy="1.0"), r"numpy 1\.0, not "),
        (None, "`medserve worker` of this version did not start it"),
    ],
)
def test_a_worker_of_other_versions_gets_nothing(tmp_path: Path, other: Facts | None, reason: str) -> None:
    engine = Scripted({"other": other}, lambda unit, _: made(unit))
    with pytest.raises(CannotRun, match=reason):
        go(STUDY, tmp_path / "run", engine, patience=0.0)
    assert not engine.given


def test_versions_that_this_machine_lacks_are_those_of_the_first_worker(tmp_path: Path) -> None:
    engine = Scripted({"w1": worker(tensorrt="10.1"), "w2": worker(tensorrt="10.2")}, lambda unit, _: made(unit))
    _, failed, said = go(STUDY, tmp_path / "run", engine)
    assert failed == 0
    assert {address for _, address in engine.given} == {"w1"}
    assert any("tensorrt 10.2, not 10.1" in line for line in said)


def test_a_full_disk_sends_the_unit_elsewhere(tmp_path: Path) -> None:
    full = Outcome(reason="No space left on device", no_space=True)
    engine = Scripted(
        {"w1": worker(), "w2": worker(host="two")}, lambda unit, address: full if address == "w1" else made(unit)
    )
    _, failed, said = go(STUDY, tmp_path / "run", engine)
    assert failed == 0
    assert Counter(address for _, address in engine.given)["w1"] == 1
    assert any("its disk is full" in line for line in said)


def test_a_disk_that_is_full_before_the_unit_begins_too(tmp_path: Path) -> None:
    class Full(Scripted):
        def ask(self, address: str, function: Callable[..., Any], *words: Any) -> Any:
            if function is units.keep and address == "w1":
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().ask(address, function, *words)

    engine = Full({"w1": worker(), "w2": worker(host="two")}, lambda unit, _: made(unit))
    _, failed, _ = go(STUDY, tmp_path / "run", engine)
    assert failed == 0
    assert {address for name, address in engine.given if not name.startswith("train")} == {"w2"}


def test_a_unit_that_fails_is_said_and_what_does_not_need_it_goes_on(tmp_path: Path) -> None:
    def fate(unit: Unit, _: str) -> Outcome | Exception | None:
        if unit.kind == "train" and "resnet18-pytorch" in unit.name:
            return Outcome(reason="it does not converge")
        return ValueError("broken") if unit.kind == "measure" else made(unit)

    engine = Scripted({"w1": worker()}, fate)
    _, failed, said = go(STUDY, tmp_path / "run", engine)
    assert failed == 2
    assert "failed it does not converge" in said
    reasons = {store.read_json(path, Result).reason for path in (tmp_path / "run/results").glob("*/*/result.json")}
    assert reasons == {"broken"}


def test_a_unit_that_always_loses_its_worker_ends(tmp_path: Path) -> None:
    engine = Scripted({"w1": worker()}, lambda unit, _: Lost("gone") if unit.kind == "measure" else made(unit))
    _, failed, said = go(STUDY, tmp_path / "run", engine)
    assert failed == 1
    assert any(f"lost {remote_runner.MOST_LOSSES + 1} times" in line for line in said)


def test_a_part_that_changes_on_the_way_is_refused_and_none_leads_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "file").write_text("content")
    part = units.pack(tmp_path / "made")
    units.unpack(part, tmp_path / "there")
    assert (tmp_path / "there" / "file").read_text() == "content"
    with pytest.raises(CannotRun, match="its bytes changed on the way"):
        units.unpack(Part(part.content[:-1] + b"x", part.sha256), tmp_path / "there")
    assert (tmp_path / "there" / "file").read_text() == "content"
    with zipfile.ZipFile(hostile := io.BytesIO(), "w") as archive:
        archive.writestr("../outside", "")
        archive.writestr(f"{tmp_path}/absolute", "")
    units.unpack(Part(hostile.getvalue(), hashlib.sha256(hostile.getvalue()).hexdigest()), tmp_path / "there")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "there"]


def test_of_more_launches_than_a_study_has_only_its_own_travel(tmp_path: Path) -> None:
    for launch in range(4):
        store.write_json(tmp_path / "results" / "cell" / str(launch) / "result.json", {})
    units.unpack(units.pack(tmp_path / "results", 2), tmp_path / "there")
    assert sorted(path.parent.name for path in tmp_path.glob("there/*/*/result.json")) == ["0", "1"]


def test_shards_are_disjoint_and_whole_and_take_no_more_than_there_is() -> None:
    from medserve.matrix import plan

    parts = [plan(msgspec.structs.replace(STUDY, shard=f"{part}/2")) for part in (1, 2)]
    whole = plan(STUDY)
    names = [{made.name for made in one.exports} for one in parts]
    assert not names[0] & names[1]
    assert names[0] | names[1] == {made.name for made in whole.exports}
    assert all(any("part" in words for words in one.left_out) for one in parts)
    for part in ("1/3", "3/3"):
        with pytest.raises(BadInput, match="it has at most 2 parts"):
            plan(msgspec.structs.replace(STUDY, shard=part))


def test_a_study_with_more_launches_has_the_same_folder_and_another_one_has_not() -> None:
    more = msgspec.structs.replace(STUDY, launches=5)
    longer = msgspec.structs.replace(STUDY, measure=(Measure(profiles=("in-process-1",), seconds=99.0),))
    assert units.key(STUDY) == units.key(more) != units.key(longer)


def test_what_is_measured_is_known_by_its_results(tmp_path: Path) -> None:
    from medserve.matrix import plan

    assert not units.is_measured(STUDY, tmp_path)
    store.write_json(tmp_path / "study.json", STUDY)
    cells = [cell for one in plan(STUDY).deployed for cell in one.cells]
    for cell in cells:
        assert not units.is_measured(STUDY, tmp_path)
        result = Result(study="mini", cell=cell, launch=0, status="done", started="2026-01-01T00:00:00+00:00")
        store.write_json(tmp_path / "results" / cell.name / "0" / "result.json", result)
    assert units.is_measured(STUDY, tmp_path)
    assert not units.is_measured(msgspec.structs.replace(STUDY, launches=2), tmp_path)


@pytest.mark.parametrize("words", ["", "2", "0/2", "3/2", "-1/2", "1/2/3", "1/2\n", "\u0661/2", "1/9999999"])
def test_what_is_no_part_of_so_many_is_refused(words: str) -> None:
    with pytest.raises(BadInput, match="expected a part of so many"):
        check_shard(words)
