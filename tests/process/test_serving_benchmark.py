"""The wrapper beside other servers: what is measured is real, what answers something else is refused, nothing stays."""

import json
import sys
from pathlib import Path

import msgspec
import psutil
import pytest
from conftest import Artifacts, Stage
from test_servers import STRANGER

from loadtest.benchmark.bench import Bench
from loadtest.benchmark.serving import comparison
from medserve import environments, study_file
from medserve.errors import CannotRun
from medserve.spec import Environment, Server


def beside(server: Server, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[comparison.Row]:
    # An environment of its own would have to be downloaded.
    here = Path(sys.executable).parent
    known = environments.Installed(environment=Environment(name="here"), python="3", versions={"numpy": "2"})
    monkeypatch.setattr(environments, "make", lambda _: here)
    monkeypatch.setattr(environments, "programs", lambda _: here)
    monkeypatch.setattr(environments, "installed", lambda _: known)
    made = msgspec.structs.replace(
        study_file.read("servers"), servers=(server,), environments=(Environment(name="here"),)
    )
    return comparison.compare(Bench(tmp_path, 1.0, model), model, made, [server.name], rounds=2, count=60)


def stranger(tmp_path: Path, off: float) -> Server:
    (tmp_path / "stranger.py").write_text(STRANGER)
    return Server(
        name="stranger",
        command=("python", str(tmp_path / "stranger.py"), "{port}"),
        variables={"MODEL": "{file}", "OFF": str(off)},
        environment="here",
        body="instances",
    )


@pytest.mark.full
def test_another_server_is_measured_in_turn_and_ends(
    artifact_of: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    rows = beside(stranger(tmp_path, 0.0), artifact_of("pytorch", "onnx"), tmp_path, monkeypatch)
    assert [(row.server, row.body) for row in rows] == [
        ("medserve", "oip"),
        ("medserve", "oip_json"),
        ("stranger", "instances"),
    ]
    for row in rows:
        assert row.requests == 120
        # How long each takes is for the benchmark to say: a busy machine reverses any order.
        assert 0 < row.p50 <= row.p99
        assert min(row.in_process, row.per_second, row.cpu) > 0
        assert row.behind_low <= row.behind <= row.behind_high
    assert (rows[0].behind_low, rows[0].behind_high) == (0, 0)
    after = {child.pid for child in psutil.Process().children(recursive=True)}
    assert after <= before


def test_a_server_that_answers_something_else_is_not_compared(
    artifact_of: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CannotRun, match="stranger answers .*; the model gives"):
        beside(stranger(tmp_path, 1e-3), artifact_of("pytorch", "onnx"), tmp_path, monkeypatch)


def test_the_servers_of_the_study_are_pinned() -> None:
    made = study_file.read("servers")
    for environment in made.environments:
        assert all(package.count("==") == 1 for package in environment.packages), environment
    words = [word for server in made.servers for word in server.command]
    applications = [word.removeprefix("{studies}/") for word in words if word.endswith(".py")]
    assert applications
    assert all((study_file.STUDIES / name).is_file() for name in applications)
    named = {server.environment for server in made.servers if server.environment}
    assert named == {environment.name for environment in made.environments}
    assert set(comparison.installable(made)) == {server.name for server in made.servers} - {
        "openvino-model-server",
        "tensorflow-serving",
    }


@pytest.mark.full
def test_the_whole_of_it_without_others(artifact_of: Artifacts, stage: Stage) -> None:
    words = ["--only", "", "--rounds", "1", "--requests", "100", "--json"]
    done = stage("loadtest.benchmark", "serving", str(artifact_of("pytorch", "onnx")), *words)
    # A target that is missed here says nothing: it is a glance, beside other tests.
    assert done.returncode in (0, 1), done.stderr
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert [row["server"] for row in found["servers"]] == ["medserve", "medserve"]
    assert {line["part"] for line in found["figures"]} == {"batching", "JSON"}
    assert all(line["value"] > 0 for line in found["figures"])


def test_an_unknown_server_is_refused(stage: Stage) -> None:
    done = stage("loadtest.benchmark", "serving", "--only", "starlet")
    assert (done.returncode, done.stdout) == (2, "")
    assert "unknown server 'starlet'" in done.stderr


def test_what_is_no_onnx_artifact_is_refused_before_anything_is_installed(
    artifact_of: Artifacts, stage: Stage, tmp_path: Path
) -> None:
    for folder, line in (
        (tmp_path / "nowhere", "nowhere/artifact.json: no such file"),
        (artifact_of("pytorch", "torchscript"), "its format is torchscript; all these servers run onnx"),
    ):
        done = stage("loadtest.benchmark", "serving", str(folder))
        assert (done.returncode, done.stdout) == (2, "")
        assert line in done.stderr
        assert len(done.stderr.splitlines()) == 1
