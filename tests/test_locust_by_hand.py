"""The locustfile without a plan: on the command line, and with Locust's web page."""

import json
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from stub_server import UNIFORM, stub

from loadtest import samples
from loadtest.client import LOCUSTFILE


def locust(*words: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/")


@pytest.mark.parametrize(("words", "mode"), [((), "closed-loop"), (("--rate", "50"), "open-loop")])
def test_the_locustfile_works_by_hand(tmp_path: Path, words: tuple[str, ...], mode: str) -> None:
    out = tmp_path / "samples.parquet"
    with stub(lambda handler: handler.scores(UNIFORM)) as server:
        by_hand = locust("--headless", "--host", server.url, "-t", "2s", "--samples", str(out), *words)
        said, _ = by_hand.communicate(timeout=60)
    assert by_hand.returncode == 0, said
    assert f"m 1 x {mode}" in said
    table = samples.read(out)
    assert samples.is_good(table).any()
    assert (table["intended_ns"].null_count == 0) == (mode == "open-loop")


def test_by_hand_a_server_that_is_not_there_is_one_line() -> None:
    by_hand = locust("--headless", "--host", "http://127.0.0.1:9", "-t", "2s", "--loglevel", "ERROR")
    said, _ = by_hand.communicate(timeout=60)
    assert by_hand.returncode == 1
    assert said.count("error: no server answers at http://127.0.0.1:9") == 1
    assert "Traceback" not in said


def test_the_web_page_starts_and_shows_a_test() -> None:
    with stub(lambda handler: handler.scores(UNIFORM)) as server:
        port = free_port()
        by_hand = locust("--web-port", str(port), "--host", server.url, "--loglevel", "ERROR")
        try:
            page = f"http://127.0.0.1:{port}"
            assert "Locust" in fetch(page, patience=30)
            form = {"user_count": 2, "spawn_rate": 2, "host": server.url, "rate": 0, "model": "", "batch": 1}
            assert json.loads(fetch(f"{page}/swarm", form))["success"]
            deadline = time.monotonic() + 30
            rows: list[dict[str, object]] = []
            while time.monotonic() < deadline and not rows:
                time.sleep(0.2)
                rows = [row for row in json.loads(fetch(f"{page}/stats/requests"))["stats"] if row["num_requests"]]
            assert rows[0]["name"] == "m 1 x closed-loop"
            assert rows[0]["num_failures"] == 0
        finally:
            by_hand.terminate()
            by_hand.communicate(timeout=30)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def fetch(url: str, form: dict[str, object] | None = None, patience: float = 0.0) -> str:
    data = None if form is None else urllib.parse.urlencode(form).encode()
    deadline = time.monotonic() + patience
    while True:
        try:
            with urllib.request.urlopen(url, data, timeout=10) as answer:
                return str(answer.read().decode())
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
