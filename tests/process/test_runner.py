"""A study as its user runs it: folders, refusals, and failures that become rows."""

import json
import os
import stat
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import Stage
from mini_study import MINI, kinds, mini, results, start, trained, tried

from medserve import run_folder, runner, store, study_file
from medserve import study as studies
from medserve.errors import CannotRun
from medserve.job_runner import JobRunner
from medserve.jobs import Tuned
from medserve.result import Check, Explained, SelfTest


@pytest.mark.full
def test_a_self_test_is_made_before_what_is_measured_over_http(
    stage: Stage, checkpoint: Path, torchscript: Path, onnx: Path, tmp_path: Path
) -> None:
    study, out = mini(tmp_path, profiles='["closed-1", "open-50"]'), tmp_path / "run"
    # Whether its checks hold is the machine's affair.
    words = ("medserve.cli", "run", str(study), "--out", str(out), "--json", "--anyway")
    trained(study, out, checkpoint, torchscript, onnx)
    first = stage(*words)
    found = store.read_json(out / "selftest" / "selftest.json", SelfTest)
    done = kinds(first.stdout)
    assert done.count("selftest") == 1
    assert done.index("selftest") < done.index("http")
    assert {result.status for result in results(out).values()} == {"done"}
    assert {result.selftest for result in results(out).values()} == {found.verdict}
    assert len(results(out)) == 4
    assert first.returncode == (1 if found.failed else 0)


@pytest.mark.full
def test_tuned_settings_are_chosen_once_and_measured_beside_the_defaults(
    stage: Stage, checkpoint: Path, torchscript: Path, onnx: Path, tmp_path: Path
) -> None:
    study, out = (
        mini(tmp_path, runtimes='["openvino_cpu"]', null="false", profiles='["in-process-1"]'),
        tmp_path / "run",
    )
    study.write_text(
        study.read_text().replace("launches = 1", 'launches = 1\nsettings = ["default", "tuned"]\nexplain = true')
    )
    trained(study, out, checkpoint, torchscript, onnx)
    words = ("medserve.cli", "run", str(study), "--out", str(out))
    done = stage(*words, "--json")
    assert done.returncode == 0, done.stderr
    assert kinds(done.stdout).count("tune") == 1
    (path,) = (out / "tuned").iterdir()
    found = store.read_json(path, Tuned)
    assert len(found.candidates) >= 3
    assert all(one.reason is None and len(one.medians_ms) == 2 for one in found.candidates)
    assert all(len(one.faults) == len(one.medians_ms[1]) >= 2 for one in found.candidates)
    default, tuned = sorted(results(out).values(), key=lambda result: result.cell.deployment.settings)
    assert (default.cell.deployment.options, tuned.cell.deployment.options) == ({}, found.chosen)
    assert tuned.process["timer"]["minor_faults"] >= 0
    explained = {path.name: store.read_json(path, Explained) for path in (out / "explained").iterdir()}
    assert set(explained) == {f"{result.cell.deployment.name}.1.json" for result in (default, tuned)}
    assert all(one.attributed > 0 for one in explained.values())
    assert set(kinds(stage(*words, "--json").stdout)) == {"data"}
    compared = json.loads(stage("loadtest", "compare", str(out), "--by", "settings", "--format", "json").stdout)
    assert [one["kind"] for one in compared] == ["tuned against default"]
    page = (stage("loadtest", "report", str(out)).returncode, (out / "report.md").read_text())
    assert page[0] == 0
    assert "Tuned settings" in page[1]
    assert "Layers by time" in page[1]


def test_what_the_generator_cannot_carry_is_refused(
    stage: Stage, checkpoint: Path, torchscript: Path, onnx: Path, tmp_path: Path
) -> None:
    study, out = mini(tmp_path, null="false", profiles='["closed-1", "open-50"]'), tmp_path / "run"
    trained(study, out, checkpoint, torchscript, onnx)
    tried(out, roofline={28: 71.0})
    done = stage("medserve.cli", "run", str(study), "--out", str(out), "--json")
    assert "selftest" not in kinds(done.stdout), "the one that held is not repeated"
    assert done.returncode == 1
    by_profile = {result.cell.profile.name: result for result in results(out).values()}
    assert by_profile["closed-1"].status == "done"
    assert by_profile["open-50"].reason == (
        "50 requests a second are more than 70 % of the 71 that the load generator reaches here at 28 px; "
        "take a profile of a lower rate, or faster cores"
    )


def test_a_failed_self_test_stops_a_study_and_what_is_measured_anyway_is_measured_again(
    checkpoint: Path, torchscript: Path, onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = mini(tmp_path, null="false", profiles='["in-process-1"]'), tmp_path / "run"
    study = msgspec.structs.replace(
        study_file.read(str(path)), measure=(studies.Measure(profiles=("closed-1",), seconds=0.2, requests=0),)
    )
    trained(path, out, checkpoint, torchscript, onnx)
    store.write_json(out / "study.json", study)
    real, false = JobRunner.run, Check(name="stall", measured=4.0, truth=900.0, limit=45.0, unit="ms", ok=False)
    made: list[tuple[Check, ...]] = [(false,), (false,), ()]

    def run(self: Any, kind: str, *rest: Any, **named: Any) -> str | None:
        if kind != "selftest":
            return real(self, kind, *rest, **named)
        return "load-generator self-test failed: stall" if tried(out, checks=made.pop(0)).failed else None

    monkeypatch.setattr(JobRunner, "run", run)
    with pytest.raises(CannotRun, match="self-test failed: stall; nothing was measured: .* or measure with --anyway"):
        runner.run(study, out, lambda _: None)
    assert results(out) == {}
    assert json.loads((out / "failures" / "selftest-selftest.json").read_bytes())["reason"].endswith("failed: stall")
    assert runner.run(study, out, lambda _: None, anyway=True) == 1
    assert {result.selftest.failed for result in results(out).values() if result.selftest} == {
        "load-generator self-test failed: stall"
    }
    assert runner.run(study, out, lambda _: None) == 0, "the same command tries again"
    assert {result.selftest for result in results(out).values()} == {tried(out).verdict}
    assert made == []


def test_a_mistake_on_purpose_has_a_process_of_its_own(
    stage: Stage, checkpoint: Path, torchscript: Path, onnx: Path, tmp_path: Path
) -> None:
    names = ("in-process-1", "closed-1", "closed-1-json", "in-process-1-one-image", "in-process-1-compile-inside")
    study = mini(tmp_path, null="false", profiles=json.dumps([*names, "in-process-1-default-threads"]))
    out = tmp_path / "run"
    trained(study, out, checkpoint, torchscript, onnx)
    tried(out)
    done = stage("medserve.cli", "run", str(study), "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    told = kinds(done.stdout)
    assert told[told.index("in-process") :] == ["in-process", "http", "mistake", "cold", "mistake"]
    assert len(results(out)) == 6
    rows = json.loads(stage("loadtest", "results", str(out), "--format", "json").stdout)
    assert {row["profile"]: row["trap"] for row in rows if row["trap"]} == {
        "closed-1-json": "json",
        "in-process-1-one-image": "one-image",
        "in-process-1-compile-inside": "compile-inside",
        "in-process-1-default-threads": "default-threads",
    }
    assert {row["threads"] for row in rows if row["trap"] == "default-threads"} == {0}


def test_a_load_is_a_share_of_what_the_same_launch_found_the_capacity_to_be(
    stage: Stage, checkpoint: Path, torchscript: Path, onnx: Path, tmp_path: Path
) -> None:
    study, out = mini(tmp_path, profiles='["load-30"]'), tmp_path / "run"
    trained(study, out, checkpoint, torchscript, onnx)
    tried(out)
    done = stage("medserve.cli", "run", str(study), "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(stage("loadtest", "results", str(out), "--format", "json").stdout)
    by_profile = {row["profile"]: row for row in rows if row["runtime"] == "onnx_runtime"}
    assert list(by_profile) == ["closed-8", "load-30"]
    loaded = by_profile["load-30"]
    assert loaded["rate_asked"] == pytest.approx(0.3 * by_profile["closed-8"]["throughput"], rel=0.001)
    assert 0 < loaded["utilisation"] < 2, "of a machine that does something else too"
    (result,) = (found for name, found in results(out).items() if "onnx_runtime" in name and "load-30" in name)
    assert result.cell.profile.rate == pytest.approx(loaded["rate_asked"])
    assert stage("medserve.cli", "report", str(out)).returncode == 0
    verified = stage("medserve.cli", "verify", str(out))
    assert verified.returncode == 0, verified.stderr
    # A record whose rate stands in it is one of this study.
    assert "http" not in kinds(stage("medserve.cli", "run", str(study), "--out", str(out), "--json").stdout)


def test_what_cannot_be_trained_is_a_row_with_a_reason(stage: Stage, root: Path, tmp_path: Path) -> None:
    """The data set is not there and cannot be fetched without network."""
    out = tmp_path / "run"
    done = stage("medserve.cli", "run", str(mini(tmp_path, dataset="pathmnist")), "--out", str(out))
    assert done.returncode == 1
    rows = json.loads(stage("loadtest", "results", str(out), "--format", "json").stdout)
    assert {row["status"] for row in rows} == {"failed"}
    assert len(rows) == 4
    assert all("pathmnist.npz" in row["reason"] for row in rows)


def test_a_folder_holds_one_study(stage: Stage, root: Path, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    trained(mini(tmp_path), out, checkpoint)
    done = stage("medserve.cli", "run", str(mini(tmp_path, dataset="dermamnist")), "--out", str(out))
    assert done.returncode == 2
    made = f"'datasets', in which {checkpoint.name} is made otherwise, or not at all"
    assert f"holds a run of this study with another {made}" in done.stderr


def test_a_study_may_change_in_what_came_to_nothing(stage: Stage, root: Path, tmp_path: Path) -> None:
    """The data sets are not there and cannot be fetched without network."""
    out = tmp_path / "run"
    for dataset in ("pathmnist", "dermamnist"):
        done = stage("medserve.cli", "run", str(mini(tmp_path, dataset=dataset)), "--out", str(out))
        assert done.returncode == 1, done.stderr
        assert f"{dataset}.npz" in done.stderr


def test_a_run_goes_on_with_more_launches_more_time_and_more_cells(
    stage: Stage, checkpoint: Path, torchscript: Path, onnx: Path, tmp_path: Path
) -> None:
    study, out = mini(tmp_path, null="false", profiles='["in-process-1"]'), tmp_path / "run"
    trained(study, out, checkpoint, torchscript, onnx)
    words = ("medserve.cli", "run", str(study), "--out", str(out))
    assert stage(*words, "--json").returncode == 0
    (before,) = results(out).items()
    assert stage(*words, "--more-launches", "2", "--json").returncode == 0
    assert len(results(out)) == 3
    assert before in results(out).items()
    study.write_text(study.read_text().replace('["in-process-1"]', '["in-process-1", "in-process-32"]'))
    planned = json.loads(stage(*words, "--plan", "--json").stdout)
    assert {work["kind"]: (work["jobs"], work["done"]) for work in planned["work"]}["measure"] == (3, 0)
    # Without a word of them, the launches that the run has are kept.
    done = stage(*words)
    assert done.returncode == 0, done.stderr
    assert len(results(out)) == 6
    assert before in results(out).items()
    study.write_text(study.read_text().replace("seconds = 0.5", "seconds = 0.6"))
    assert stage(*words, "--json").returncode == 0
    assert {result.cell.profile.seconds for result in results(out).values()} == {0.6}
    changes = store.read_json(out / "changes.json", run_folder.Changes).changes
    assert [change.fields for change in changes] == [("launches",), ("measure",), ("measure",)]
    assert "The study was changed during its run" in (out / "report.md").read_text()
    study.write_text(study.read_text().replace("seconds = 0.6", "seconds = 0.4"))
    refused = stage(*words)
    assert refused.returncode == 2
    assert "a run takes more launches, more time and more cells; for anything else give another --out" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_a_folder_of_something_else_is_refused_and_left_as_it_is(stage: Stage, root: Path, tmp_path: Path) -> None:
    study, another, empty = mini(tmp_path), tmp_path / "another", tmp_path / "empty"
    others = [".cache/.any.partial", ".thesis.partial/chapter.tex", "results/.x.12.partial", ".x.12.partial/file"]
    for folder in (tmp_path / "thesis", another):
        for name in others:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(name)
    (another / "study.json").write_text(MINI)
    (tmp_path / "selftest" / "selftest").mkdir(parents=True)
    (tmp_path / "file").write_text("mine")
    lines = {
        "thesis": "holds '.cache' and is no run; give another --out, or an empty folder",
        "another": "study.json: not a valid Study",
        "selftest": "holds 'selftest' and is no run",
        "file": "is a file; give another --out",
    }
    before = sorted(tmp_path.rglob("*"))
    for name, line in lines.items():
        done = stage("medserve.cli", "run", str(study), "--out", str(tmp_path / name))
        assert done.returncode == 2
        assert line in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert sorted(tmp_path.rglob("*")) == before
    # What a run leaves that was killed before it had written its study is no obstacle.
    empty.mkdir()
    (empty / ".study.json.12.partial").write_text("{")
    (empty / ".lock").touch()
    run_folder.check(study_file.read(str(study)), empty)


def test_the_lock_belongs_to_its_owner(tmp_path: Path) -> None:
    """Whoever can open it can hold it."""
    before = os.umask(0)
    try:
        with run_folder.locked(tmp_path / "run"):
            assert stat.S_IMODE((tmp_path / "run" / ".lock").stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_two_runs_do_not_share_a_folder(stage: Stage, root: Path, tmp_path: Path) -> None:
    study, out = mini(tmp_path), tmp_path / "run"
    first = start(study, out)
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not (out / "study.json").is_file():
            time.sleep(0.05)
        second = stage("medserve.cli", "run", str(study), "--out", str(out))
        assert second.returncode == 2
        assert "another run works in this folder" in second.stderr
    finally:
        first.terminate()
        first.wait(30)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["run", "slow"], "error: unknown study 'slow'; there is: "),
        (["run", "missing.toml"], "error: missing.toml: no such study file"),
        (["train", "--dataset", "synthetic", "--out", "a b"], "error: checkpoint 'a b': cannot be part of a path"),
        (["export", "nowhere", "--format", "onnx", "--out", ".."], "error: artifact '..': cannot be part of a path"),
        (["train", "--dataset", "x", "--size", "28", "--framework", "pytorch", "--out", "o"], "unknown dataset 'x'"),
        (["serve", "nowhere"], "nowhere"),
        (["results", "nowhere"], "nowhere"),
    ],
)
def test_bad_words_are_one_line_and_exit_code_2(stage: Stage, words: list[str], line: str) -> None:
    done = stage("medserve.cli", *words)
    assert done.returncode == 2
    assert line in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [[], ["run"], ["list"], ["data"], ["train"], ["export"], ["serve"], ["load"], ["selftest"], ["time"], ["results"]],
)
def test_every_command_explains_itself(stage: Stage, words: list[str]) -> None:
    done = stage("medserve.cli", *words, "--help", COLUMNS="200")
    assert done.returncode == 0
    assert "Usage" in done.stdout
