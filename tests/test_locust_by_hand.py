"""The locustfile without a plan: on the command line, and with Locust's web page."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stub_server import UNIFORM, stub

from loadtest import samples
from loadtest.measure.locust_process import LOCUSTFILE
from loadtest.results import latency


def locust(*words: str, **env: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), *words]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/", env={**os.environ, **env}
    )


@pytest.mark.parametrize(("words", "mode"), [((), "closed-loop"), (("--rate", "50"), "open-loop")])
def test_the_locustfile_works_by_hand(tmp_path: Path, words: tuple[str, ...], mode: str) -> None:
    out = tmp_path / "samples.parquet"
    with stub(lambda handler: handler.scores(UNIFORM)) as server:
        by_hand = locust("--headless", "--host", server.url, "-t", "2s", "--samples", str(out), *words)
        said, _ = by_hand.communicate(timeout=60)
    assert by_hand.returncode == 0, said
    assert f"m 1 x {mode}" in said
    table = samples.read(out)
    assert latency.succeeded(table).any()
    assert (table["intended_ns"].null_count == 0) == (mode == "open-loop")


def test_by_hand_a_server_that_is_not_there_is_one_line() -> None:
    by_hand = locust("--headless", "--host", "http://127.0.0.1:9", "-t", "2s", "--loglevel", "ERROR")
    said, _ = by_hand.communicate(timeout=60)
    assert by_hand.returncode == 1
    assert said.count("error: no server answers at http://127.0.0.1:9") == 1
    assert "Traceback" not in said


@pytest.mark.parametrize(("words", "rate"), [((), 0), (("--processes", "2"), 50)])
def test_the_web_page_starts_shows_and_stops_a_test(tmp_path: Path, words: tuple[str, ...], rate: int) -> None:
    mode = "open-loop" if rate else "closed-loop"
    with stub(lambda handler: handler.scores(UNIFORM)) as server:
        port, bound = str(free_port()), str(free_port())
        ports = ("--web-port", port, "--master-bind-port", bound, "--master-port", bound)
        by_hand = locust(*ports, *words, "--host", server.url, "--loglevel", "ERROR")
        try:
            page = f"http://127.0.0.1:{port}"
            assert "Locust" in fetch(page, patience=30)
            wait_for(lambda: len(shown(page).get("workers", ())) == (2 if words else 0))
            # Several tests after one another, each with its record.
            for number in range(2):
                out = tmp_path / f"{number}.parquet"
                before = server.asked
                form = {"user_count": 2, "spawn_rate": 2, "host": server.url, "rate": rate, "samples": out}
                assert json.loads(fetch(f"{page}/swarm", form))["success"]
                wait_for(lambda before=before: server.asked >= before + 10 and shown(page)["total_rps"])
                row = shown(page)["stats"][0]
                assert (row["name"], row["num_failures"]) == (f"m 1 x {mode}", 0)
                fetch(f"{page}/stop", {}, patience=30)
                wait_for(out.is_file)
                table = samples.read(out)
                assert latency.succeeded(table).all()
                assert (table["intended_ns"].null_count == 0) == (mode == "open-loop")
                assert len(samples.read_facts(out).get("workers", ())) == (2 if words else 0)
        finally:
            by_hand.terminate()
            by_hand.communicate(timeout=30)


def shown(page: str) -> dict[str, Any]:
    """What the page shows at this moment."""
    found: dict[str, Any] = json.loads(fetch(f"{page}/stats/requests"))
    return found


def wait_for(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


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
