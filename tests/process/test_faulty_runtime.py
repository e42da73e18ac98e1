"""A runtime that raises or hangs: its request fails, the server says not ready, and the parent learns why."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_server import HANGS, NO_ARRAY, NOT_FINITE, RAISES, WRONG_SHAPE
from numpy.typing import NDArray
from server_process import PATIENCE, Server, serving

PROGRAM = (str(Path(__file__).parents[1] / "support" / "faulty_server.py"),)


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


@pytest.mark.parametrize("dispatch", ["inline", "thread"])
def test_a_runtime_that_hangs_ends_the_server_which_says_why(
    empty: Path, image: NDArray[np.uint8], dispatch: str, tmp_path: Path
) -> None:
    words = ["--runtime", "null", "--dispatch", dispatch, "--patience", "0.2"]
    with (tmp_path / "log").open("wb") as stderr, serving(empty, *words, program=PROGRAM, stderr=stderr) as server:
        with pytest.raises(ConnectionError):
            server.infer(np.full_like(image, HANGS))
        assert server.child.wait(PATIENCE) == 1
        assert server.child.stdout is not None
        event = json.loads(server.child.stdout.readline())
        assert event == {"event": "error", "reason": "the runtime hangs: null has not answered for 0.2 s"}
    _, line = log(tmp_path / "log")
    assert (line["level"], line["reason"]) == ("critical", event["reason"])


@pytest.mark.parametrize("dispatch", ["inline", "thread"])
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (NOT_FINITE, "the runtime returned scores that are not finite"),
        (WRONG_SHAPE, "the runtime returned scores of shape (1, 7); expected (1, 8)"),
        (NO_ARRAY, "the runtime returned scores of shape list; expected (1, 8)"),
    ],
)
def test_scores_that_are_none_are_a_500_and_not_ready(
    empty: Path, image: NDArray[np.uint8], dispatch: str, value: int, reason: str
) -> None:
    with serving(empty, "--runtime", "null", "--dispatch", dispatch, program=PROGRAM) as server:
        failed = server.infer(np.full_like(image, value))
        assert (failed.status, failed.error) == (500, f"the runtime failed: RuntimeError: {reason}")
        assert readiness(server) == {503}
        assert server.infer(np.zeros_like(image)).status == 200
        assert readiness(server) == {200}
