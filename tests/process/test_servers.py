"""Servers that others wrote as arms of a study: measured and checked like ours, refused in one line, and ended."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import psutil
import pytest
from conftest import Stage
from mini_study import gone, mini, results, trained, tried

from loadtest.results import table
from medserve import environments, matrix, store, study_file
from medserve.errors import BadInput, CannotRun
from medserve.spec import Environment, Server
from medserve.study import Study

MANUAL = (study_file.STUDIES / "README.md").read_text()
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", MANUAL, re.DOTALL)
STRANGER = EXAMPLE.replace(
    'model = onnxruntime.InferenceSession(os.environ["MODEL"])\n',
    """model = onnxruntime.InferenceSession(os.environ["MODEL"])
# As servers do that have workers of their own.
import subprocess
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
""",
).replace("np.uint8)})[0]\n", "np.uint8)})[0] + float(os.environ['OFF'])\n")
"""The server of the manual, with a worker, and with scores that may be off."""
SILENT = """
import socket, sys, time
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
time.sleep(600)
"""
SERVERS = """
[[servers]]
name = "right"
command = ["python", "{stranger}", "{{port}}"]
variables = {{ MODEL = "{{file}}", OFF = "0.0" }}
body = "instances"
path = "/anything"

[[servers]]
name = "wrong"
command = ["python", "{stranger}", "{{port}}"]
variables = {{ MODEL = "{{file}}", OFF = "0.01" }}
body = "instances"

[[servers]]
name = "ends"
command = ["python", "-c", "raise SystemExit('no such model')"]

[[servers]]
name = "absent"
command = ["absent-model-server", "{{port}}"]
needs = "the absent package"

[[servers]]
name = "silent"
command = ["python", "{silent}", "{{port}}"]
ready_seconds = 0.5

[[servers]]
name = "nobody"
url = "http://127.0.0.1:9"
ready_seconds = 0.5
"""


def asking(folder: Path) -> Path:
    (folder / "stranger.py").write_text(STRANGER)
    path = mini(folder, null="false", profiles='["closed-1", "in-process-1"]')
    # What finds `python` finds the one of the tests.
    (folder / "silent.py").write_text(SILENT)
    text = SERVERS.format(stranger=folder / "stranger.py", silent=folder / "silent.py").replace(
        '"python"', f'"{sys.executable}"'
    )
    path.write_text(path.read_text().replace('["native", "onnx"]', '["onnx"]') + text)
    return path


def test_servers_are_measured_like_ours_and_what_is_wrong_with_them_is_their_row(
    stage: Stage, checkpoint: Path, onnx: Path, tmp_path: Path
) -> None:
    study, out = asking(tmp_path), tmp_path / "run"
    trained(study, out, checkpoint, onnx)
    tried(out)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    done = stage("medserve.cli", "run", str(study), "--out", str(out))
    assert done.returncode == 1, done.stderr
    rows = {(row.server, row.mode): row for row in table.rows(table.read(out))}
    assert set(rows) == {
        *((name, "closed-loop") for name in ("medserve", "right", "wrong", "ends", "absent", "silent", "nobody")),
        ("medserve", "in-process"),
    }
    right, ours = rows["right", "closed-loop"], rows["medserve", "closed-loop"]
    assert (right.status, right.wrong, right.failed, right.framework) == ("done", 0, 0, "pytorch")
    assert right.valid == ours.valid
    assert right.p50.value
    assert right.cpu_ms
    assert right.peak_memory_bytes
    assert right.first_answer_seconds
    assert right.import_seconds is None, "what it does not tell is empty"
    reasons = {name: rows[name, "closed-loop"].reason or "" for name in ("wrong", "ends", "absent", "silent", "nobody")}
    assert "answers are wrong" in reasons["wrong"]
    assert "a score of " in reasons["wrong"]
    assert "ends ended: exit code 1: no such model" in reasons["ends"]
    assert "there is no program absent-model-server; it needs the absent package" in reasons["absent"]
    assert "silent was not ready in 0.5 s: it listens, and does not answer" in reasons["silent"]
    assert "nobody was not ready in 0.5 s: it does not listen" in reasons["nobody"]
    (kept,) = [one for name, one in results(out).items() if "-right.closed" in name]
    assert kept.cell.deployment.server == study_file.read(str(study)).servers[0]
    compared = stage("medserve.cli", "compare", str(out), "--by", "server")
    assert "server against server" in compared.stdout
    assert "right" in compared.stdout
    verified = stage("medserve.cli", "verify", str(out))
    assert verified.returncode == 0, verified.stderr
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


def test_a_program_ends_with_all_that_it_started_when_its_parent_is_killed(tmp_path: Path) -> None:
    left = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], "
    left += "start_new_session=True); print('ready', flush=True); import time; time.sleep(600)"
    between = (
        "import subprocess, sys; from medserve import process; "
        f"child = process.start(['-m', 'medserve.environments', 'start', '', sys.executable, '-c', {left!r}]); "
        "child.wait()"
    )
    parent = subprocess.Popen([sys.executable, "-c", between], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    with parent.stdout:
        assert parent.stdout.readline() == b"ready\n"
        family = psutil.Process(parent.pid).children(recursive=True)
        assert len(family) == 3
        os.kill(parent.pid, signal.SIGKILL)
        assert parent.wait() == -signal.SIGKILL
        assert gone(family, 20.0)


def test_an_environment_is_made_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSERVE_ENVIRONMENTS", str(tmp_path))
    bare = Environment(name="bare")
    with pytest.raises(CannotRun, match="environment bare is not made"):
        environments.programs(bare)
    programs = environments.make(bare)
    known = environments.installed(programs.parent)
    assert known is not None
    assert (known.python, "pip" in known.versions) == (sys.version.split()[0], True)
    told = subprocess.run([programs / "python", "-c", "import sys; print(sys.prefix)"], capture_output=True, check=True)
    assert Path(told.stdout.decode().strip()) == programs.parent
    stamp = (programs.parent / environments.MANIFEST).stat().st_mtime_ns
    assert environments.make(bare) == programs == environments.programs(bare)
    assert (programs.parent / environments.MANIFEST).stat().st_mtime_ns == stamp
    assert environments.place(Environment(name="bare", packages=("x",))) != programs.parent


def test_what_cannot_be_an_environment_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSERVE_ENVIRONMENTS", str(tmp_path))
    absent = Environment(name="mine", packages=(str(tmp_path / "absent"),))
    with pytest.raises(CannotRun, match="environment mine cannot be made: .*absent") as refused:
        environments.make(absent)
    assert "\n" not in str(refused.value)
    assert environments.installed(environments.place(absent)) is None
    with pytest.raises(BadInput, match="its constraints absent.txt cannot be read"):
        environments.place(Environment(name="mine", constraints="absent.txt"))
    with pytest.raises(BadInput, match="absent-python is no Python here"):
        environments.place(Environment(name="mine", python="absent-python"))


def test_a_study_whose_environment_cannot_be_made_says_so_in_the_rows_of_its_servers(
    stage: Stage, checkpoint: Path, onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDSERVE_ENVIRONMENTS", str(tmp_path / "environments"))
    study, out = mini(tmp_path, null="false", profiles='["closed-1"]'), tmp_path / "run"
    made = '\n[[servers]]\nname = "one"\ncommand = ["python"]\nenvironment = "e"\n[[environments]]\nname = "e"\n'
    made += f'packages = ["{tmp_path}/absent"]\n'
    study.write_text(study.read_text().replace('["native", "onnx"]', '["onnx"]') + made)
    trained(study, out, checkpoint, onnx)
    tried(out)
    done = stage("medserve.cli", "run", str(study), "--out", str(out))
    assert done.returncode == 1
    rows = {row.server: row for row in table.rows(table.read(out))}
    assert rows["medserve"].status == "done"
    assert "environment e cannot be made" in (rows["one"].reason or "")


PLAIN = Server(name="one", command=("x",))


@pytest.mark.parametrize(
    ("servers", "line"),
    [
        ((PLAIN, PLAIN), "several have the name one"),
        ((Server(name="one"),), "give either a 'url' or a 'command'"),
        ((Server(name="one", url="http://a:1", command=("x",)),), "give either a 'url' or a 'command'"),
        ((Server(name="one", command=("x", "{prt}")),), "unknown place in '{prt}' 'prt' (did you mean port?)"),
        ((Server(name="one", command=("x",), environment="e"),), "unknown environment 'e'"),
        ((PLAIN, Server(name="two", command=("x", "{threads}"))), "one: the study has several 'threads', and neither"),
        ((Server(name="one", command=("x",), body="oipp"),), "did you mean oip"),
        ((Server(name="one", command=("x",), format="onx"),), "did you mean onnx"),
        ((Server(name="one", command=("x",), runtime="onnxruntime"),), "did you mean onnx_runtime"),
    ],
)
def test_what_is_wrong_with_a_server_is_said_when_the_study_is_read(
    servers: tuple[Server, ...], line: str, tmp_path: Path
) -> None:
    made = msgspec.structs.replace(study_file.read(str(mini(tmp_path))), servers=servers, threads=(1, 2))
    with pytest.raises(BadInput) as refused:
        matrix.plan(made)
    assert line in str(refused.value)


def test_a_server_measures_what_its_requests_can_say(tmp_path: Path) -> None:
    read = study_file.read(str(mini(tmp_path, profiles='["in-process-1", "closed-1", "closed-1-json"]')))
    behind = Server(name="theirs", command=("x", '{"a": 1}'), body="instances")
    other = Server(name="other", command=("x",), format="saved_model", runtime="saved_model")
    made: Study = msgspec.structs.replace(read, servers=(behind, other))
    found = matrix.plan(made)
    kept = {one.deployment.name: [profile.name for profile in one.profiles] for one in found.deployed}
    (name,) = (name for name in kept if name.endswith("-theirs"))
    assert kept[name] == ["closed-1"]
    assert any("other: it serves SavedModel" in line for line in found.left_out)
    assert store.encode(made) == store.encode(msgspec.convert(msgspec.to_builtins(made), Study))
