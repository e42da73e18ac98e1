"""A runtime that raises or hangs: its request fails, the server says not ready, and the parent learns why."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_server import HANGS, RAISES
from numpy.typing import NDArray
from server_process import PATIENCE, Server, serving

PROGRAM = (str(Path(__file__).with_name("faulty_server.py")),)


def log(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def readiness(server: Server) -> set[int]:
    paths = ("/v2/health/ready", f"/v2/models/{server.model}/ready", f"/v2/models/{server.model}/versions/1/ready")
    return {server.ask("GET", path).status for path in paths}


@pytest.mark.parametrize("dispatch", ["inline", "thread"])
def test_a_runtime_that_raises(empty: Path, image: NDArray[np.uint8], dispatch: str, tmp_path: Path) -> None:
    words = ["--runtime", "null", "--dispatch", dispatch]
    with (tmp_path / "log").open("wb") as stderr, serving(empty, *words, program=PROGRAM, stderr=stderr) as server:
        assert readiness(server) == {200}
        failed = server.infer(np.full_like(image, RAISES))
        assert failed.status == 500
        assert failed.error == "the runtime failed: RuntimeError: device 0 fell off the bus"
        assert readiness(server) == {503}
        assert server.ask("GET", "/v2/health/ready").error == failed.error
        assert server.ask("GET", "/v2/health/live").status == 200
        # What is wrong with a request says nothing of the runtime.
        assert server.ask("POST", server.infer_path, b"nonsense").status == 400
        assert readiness(server) == {503}
        assert server.infer(np.zeros_like(image)).scores == pytest.approx(0.125)
        assert readiness(server) == {200}
    begun, unready, *rest = log(tmp_path / "log")
    assert (begun["level"], begun["event"], begun["url"]) == ("info", "serving", server.url)
    assert (unready["level"], unready["event"], unready["model"]) == ("error", "not ready", "empty")
    assert unready["reason"] == failed.error
    assert "fell off the bus" in unready["traceback"].splitlines()[-1]
    assert [line["event"] for line in rest] == ["ready again", "draining", "ended"]


def test_a_thread_that_hangs(empty: Path, image: NDArray[np.uint8], tmp_path: Path) -> None:
    words = ["--runtime", "null", "--dispatch", "thread", "--queue", "1", "--patience", "0.2"]
    with (tmp_path / "log").open("wb") as stderr, serving(empty, *words, program=PROGRAM, stderr=stderr) as server:
        failed = server.infer(np.full_like(image, HANGS))
        assert failed.status == 500
        assert failed.error == "the runtime failed: TimeoutError: no answer within 0.2 s"
        assert readiness(server) == {503}
        # The queue holds one; its request fails as well, and the next is refused at once.
        assert [server.infer(image).status for _ in range(2)] == [500, 503]
        server.child.terminate()
        assert server.child.wait(PATIENCE) == 0
    assert log(tmp_path / "log")[1]["reason"] == failed.error


def test_an_event_loop_that_hangs_ends_and_says_why(empty: Path, image: NDArray[np.uint8], tmp_path: Path) -> None:
    words = ["--runtime", "null", "--patience", "0.2"]
    with (tmp_path / "log").open("wb") as stderr, serving(empty, *words, program=PROGRAM, stderr=stderr) as server:
        with pytest.raises(ConnectionError):
            server.infer(np.full_like(image, HANGS))
        assert server.child.wait(PATIENCE) == 1
        assert server.child.stdout is not None
        event = json.loads(server.child.stdout.readline())
        assert event == {"event": "error", "reason": "the runtime hangs: null has not answered for 0.2 s"}
    _, line = log(tmp_path / "log")
    assert (line["level"], line["reason"]) == ("critical", event["reason"])
