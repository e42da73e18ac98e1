"""The wrapper beside other servers: what is measured is real, what answers something else is refused, nothing stays."""

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
from conftest import Artifacts, Stage

from loadtest.benchmark.bench import Bench
from loadtest.benchmark.serving import comparison, environments, peers
from medserve.errors import CannotRun

STRANGER = """
import http.server, json, os
import numpy as np
from onnx_model import Model

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    model = Model()

    def log_message(self, *_):
        pass

    def do_POST(self):
        image = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["image"]
        scores = self.model(np.array([image], np.uint8))[0] + float(os.environ["OFF"])
        body = json.dumps({"probabilities": scores.tolist()}).encode()
        head = b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body)
        self.wfile.write(head + body)

http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


def beside(stranger: peers.Peer, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[comparison.Row]:
    monkeypatch.setattr(peers, "PEERS", (stranger,))
    monkeypatch.setattr(comparison, "install", lambda _folder, _packages: Path(sys.executable).parent)
    bench = Bench(tmp_path, 1.0, model)
    return comparison.compare(bench, model, tmp_path, [stranger.name], rounds=2, count=60)


def stranger(tmp_path: Path, off: float) -> peers.Peer:
    (tmp_path / "stranger.py").write_text(STRANGER)
    command = ("python", str(tmp_path / "stranger.py"))
    return peers.Peer("Stranger", (), command, "/predict", peers.LISTS, (("OFF", str(off)),))


@pytest.mark.full
def test_another_server_is_measured_in_turn_and_ends(
    artifact_of: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    rows = beside(stranger(tmp_path, 0.0), artifact_of("pytorch", "onnx"), tmp_path, monkeypatch)
    assert [(row.server, row.body) for row in rows] == [
        ("medserve", "OIP v2, binary"),
        ("medserve", "OIP v2, JSON"),
        ("Stranger", "JSON, nested lists"),
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
    with pytest.raises(CannotRun, match="Stranger answers .*; the model gives"):
        beside(stranger(tmp_path, 1e-3), artifact_of("pytorch", "onnx"), tmp_path, monkeypatch)


def test_a_program_that_does_not_listen_says_why(
    artifact_of: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = peers.Peer("Stranger", (), ("python", "-c", "raise SystemExit('no such model')"), "/", peers.LISTS)
    with pytest.raises(CannotRun, match="Stranger does not listen: no such model"):
        beside(broken, artifact_of("pytorch", "onnx"), tmp_path, monkeypatch)


def test_what_cannot_be_installed_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match=r"nothing cannot be installed: .*/absent") as refused:
        environments.install(tmp_path / "nothing", [str(tmp_path / "absent")])
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "nothing" / "packages.txt").exists()


def test_the_names_of_peers_and_their_versions_are_pinned() -> None:
    for peer in peers.PEERS:
        assert peer.packages
        assert all(package.count("==") == 1 for package in (*peer.packages, *peers.MODEL))
    words = [word for peer in peers.PEERS for word in peer.command]
    for word in words:
        if word.startswith("{applications}/"):
            assert (environments.APPLICATIONS / word.removeprefix("{applications}/")).is_file()


def test_every_body_says_the_same_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    sent: list[Any] = [body.encode(image)[1] for body in (peers.LISTS, peers.BYTES, peers.JSON_TENSORS)]
    assert np.array_equal(json.loads(sent[0])["image"], image)
    assert sent[1] == image.tobytes()
    assert msgspec.json.decode(sent[2])["inputs"][0]["data"] == image.ravel().tolist()
    assert peers.BINARY_TENSORS.encode(image)[1].endswith(image.tobytes())


@pytest.mark.full
def test_the_whole_of_it_without_others(artifact_of: Artifacts, stage: Stage) -> None:
    words = ["--peers", "", "--rounds", "1", "--requests", "100", "--json"]
    done = stage("loadtest.benchmark", "serving", str(artifact_of("pytorch", "onnx")), *words)
    # A target that is missed here says nothing: it is a glance, beside other tests.
    assert done.returncode in (0, 1), done.stderr
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert [row["server"] for row in found["servers"]] == ["medserve", "medserve"]
    assert {line["part"] for line in found["figures"]} == {"batching", "JSON"}
    assert all(line["value"] > 0 for line in found["figures"])


def test_an_unknown_peer_is_refused(stage: Stage) -> None:
    done = stage("loadtest.benchmark", "serving", "--peers", "Starlet")
    assert (done.returncode, done.stdout) == (2, "")
    assert "unknown peer 'Starlet'" in done.stderr


def test_what_is_no_onnx_artifact_is_refused_before_anything_is_installed(
    artifact_of: Artifacts, stage: Stage, tmp_path: Path
) -> None:
    for folder, line in (
        (tmp_path / "nowhere", "nowhere/artifact.json: no such file"),
        (artifact_of("pytorch", "torchscript"), "its format is torchscript; all these servers run onnx"),
    ):
        done = stage("loadtest.benchmark", "serving", str(folder), "--environments", str(tmp_path / "peers"))
        assert (done.returncode, done.stdout) == (2, "")
        assert line in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "peers").exists()
