"""The locustfile without a plan: on the command line, and with Locust's web page."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
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


@contextmanager
def web_page(*words: str) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """A Locust process with its web page, and the page's address."""
    port = str(free_port())
    by_hand = locust("--web-port", port, *words, "--loglevel", "ERROR")
    try:
        page = f"http://127.0.0.1:{port}"
        assert "Locust" in fetch(page, patience=30)
        yield page, by_hand
    finally:
        by_hand.terminate()
        by_hand.communicate(timeout=30)


@pytest.mark.parametrize(("words", "rate"), [((), 0), (("--processes", "2"), 50)])
def test_the_web_page_starts_shows_and_stops_a_test(tmp_path: Path, words: tuple[str, ...], rate: int) -> None:
    mode = "open-loop" if rate else "closed-loop"
    bound, record = str(free_port()), tmp_path / "record.parquet"
    ports = ("--master-bind-host", "127.0.0.1", "--master-bind-port", bound, "--master-port", bound)
    with (
        stub(lambda handler: handler.scores(UNIFORM)) as server,
        web_page(*ports, *words, "--host", server.url, "--samples", str(record)) as (page, _),
    ):
        wait_for(lambda: len(shown(page).get("workers", ())) == (2 if words else 0))
        # Several tests after one another, each with its record.
        for out in (record, tmp_path / "record-2.parquet"):
            before = server.asked
            form = {"user_count": 2, "spawn_rate": 2, "host": server.url, "rate": rate, "profile": ""}
            assert json.loads(fetch(f"{page}/swarm", form))["success"]
            wait_for(lambda before=before: server.asked >= before + 10 and shown(page)["total_rps"])
            row = shown(page)["stats"][0]
            assert (row["name"], row["num_failures"]) == (f"m 1 x {mode}", 0)
            assert not out.exists()
            fetch(f"{page}/stop", {}, patience=30)
            wait_for(out.is_file)
            table = samples.read(out)
            assert latency.succeeded(table).all()
            assert (table["intended_ns"].null_count == 0) == (mode == "open-loop")
            assert len(samples.read_facts(out).get("workers", ())) == (2 if words else 0)


def test_the_web_page_listens_on_the_loopback_address_unless_another_one_is_given() -> None:
    for words, expected in (((), "127.0.0.1"), (("--web-host", "127.0.0.2"), "127.0.0.2")):
        by_hand = locust("--web-port", "0", *words, "--host", "http://127.0.0.1:9", "--loglevel", "ERROR")
        try:
            process = psutil.Process(by_hand.pid)
            listening: set[str] = set()

            def listens(process: psutil.Process = process, listening: set[str] = listening) -> bool:
                found = process.net_connections("tcp")
                listening |= {one.laddr.ip for one in found if one.status == psutil.CONN_LISTEN}
                return bool(listening)

            wait_for(listens)
            assert listening == {expected}
        finally:
            by_hand.terminate()
            by_hand.communicate(timeout=30)


FORM = {"user_count": 1, "spawn_rate": 1}


def test_the_web_page_sets_no_file_no_address_and_no_other_option(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("the only copy")
    named = (
        "samples",
        "trace",
        "html_file",
        "json_file",
        "csv_prefix",
        "medserve_plan",
        "headless",
        "exit_code_on_error",
    )
    with (
        stub(lambda handler: handler.scores(UNIFORM)) as server,
        stub(lambda handler: handler.scores(UNIFORM)) as other,
        web_page("--host", server.url) as (page, _),
    ):
        for name in named:
            said = json.loads(fetch(f"{page}/swarm", FORM | {name: kept}))
            line = f"{name}: set on the command line only; restart Locust with it"
            assert said == {"success": False, "message": line}
        assert not json.loads(fetch(f"{page}/swarm", FORM | {"model": "other"}))["success"]
        said = json.loads(fetch(f"{page}/swarm", FORM | {"host": other.url}))
        line = f"the host is {server.url}; it is set on the command line only, by --host"
        assert said == {"success": False, "message": line}
        # Through its own page Locust also changes the class of the users.
        said = refused(f"{page}/user", json.dumps({"user_class_name": "Client", "host": other.url}).encode())
        assert said == {"success": False, "message": "/user is not available"}
        assert shown(page)["state"] == "ready"
        assert json.loads(fetch(f"{page}/swarm", FORM))["success"]
        wait_for(lambda: server.asked >= 10)
        fetch(f"{page}/stop", {}, patience=30)
        assert other.asked == 0
    assert kept.read_text() == "the only copy"


def test_the_web_page_refuses_posts_from_another_site() -> None:
    with stub(lambda handler: handler.scores(UNIFORM)) as server, web_page("--host", server.url) as (page, _):
        form = urllib.parse.urlencode(FORM).encode()
        said = refused(f"{page}/swarm", form, Origin="http://elsewhere.example")
        assert said == {"success": False, "message": "a page of http://elsewhere.example may not post here"}
        # A name of another site that resolves to the loopback address.
        said = refused(f"{page}/swarm", form, Host="elsewhere.example", Origin="http://elsewhere.example")
        assert said == {"success": False, "message": "this page is at 127.0.0.1, not at elsewhere.example"}
        assert shown(page)["state"] == "ready"
        assert server.asked == 0
        request = urllib.request.Request(f"{page}/swarm", form, {"Origin": page})
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert json.loads(answer.read())["success"]


def refused(url: str, content: bytes, **headers: str) -> Any:
    """What is said by the refusal of a post."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(url, content, headers), timeout=10)
    assert caught.value.code == 403
    with caught.value as answer:
        return json.loads(answer.read())


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
