"""How a server starts, refuses to start, and ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from server_process import PATIENCE, read, serving

from medserve import machine, process, wire
from medserve.errors import EVENTS
from medserve.spec import Deployment


def refused(*words: str) -> "subprocess.CompletedProcess[str]":
    """The end of a server that must not start."""
    return subprocess.run(
        [sys.executable, "-m", "serve", *words], capture_output=True, text=True, timeout=PATIENCE, check=False
    )


# How it starts


def test_the_ready_event_says_what_runs(empty: Path) -> None:
    cpu = machine.usable_cpus()[-1]
    deployment = Deployment(artifact="empty", runtime="null", threads=1, dispatch="thread")
    words = ["--deployment", msgspec.json.encode(deployment).decode(), "--cpus", str(cpu)]
    with serving(empty, *words) as server:
        facts = server.facts
        assert facts["affinity"] == [cpu] == list(psutil.Process(server.child.pid).cpu_affinity())
        assert facts["openmp_threads"] == "1"
        assert facts["event_loop"] == "uvloop.Loop"
        assert facts["http_protocol"] == "serve.protocol.Protocol"
        assert facts["frozen_objects"] > 10_000
        assert facts["runtime"]["runtime"] == "null"
        assert server.model == "empty"


def test_a_person_reads_a_line(empty: Path) -> None:
    words = ["-m", "serve", str(empty), "--runtime", "null", "--port", "0"]
    child = process.start(words, stdout=subprocess.PIPE, env={EVENTS: ""})
    try:
        assert child.stdout is not None
        line = child.stdout.readline().decode()
        assert "/v2/models/empty is ready (null on cpu, threads: 1). Ctrl-C stops it." in line
    finally:
        process.stop(child)
        child.stdout.close()


def test_a_port_in_use_is_one_line(empty: Path) -> None:
    with serving(empty, "--runtime", "null") as server:
        port = str(server.address[1])
        done = refused(str(empty), "--runtime", "null", "--port", port)
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"error: cannot listen on 127.0.0.1 port {port}: Address already in use; choose another"
    )
    assert done.stderr.count("\n") == 1


def test_a_refusal_is_an_event_for_programs(empty: Path) -> None:
    words = ["-m", "serve", str(empty), "--runtime", "nul", "--port", "0"]
    done = subprocess.run([sys.executable, *words], capture_output=True, env={**os.environ, EVENTS: "1"}, check=False)
    assert done.returncode == 2
    assert json.loads(done.stdout) == {
        "event": "error",
        "reason": done.stderr.decode().removeprefix("error: ").strip(),
    }
    assert b"unknown runtime 'nul' (did you mean null?); there is: aotinductor, delay, " in done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--batch-sizes", "8,1"], "batch_sizes is [8, 1]; expected one or more positive numbers in ascending order"),
        (["--batch-sizes", "0"], "batch_sizes is [0]; expected"),
        (["--batch-sizes", ""], "batch_sizes is []; expected"),
        (["--batch-sizes", "one"], "--batch-sizes is 'one'; expected numbers with commas, as in 1,32"),
        (["--threads", "-1"], "threads is -1"),
        (["--queue", "0"], "queue is 0; expected at least 1"),
        (
            ["--batch-images", "4"],
            "dispatch inline has no queue, which batching, several instances and a deadline need",
        ),
        (["--deadline", "9"], "dispatch inline has no queue, which batching, several instances and a deadline need"),
        (["--instances", "2"], "dispatch inline has no queue, which batching, several instances and a deadline need"),
        (["--dispatch", "thread", "--instances", "0"], "instances is 0; expected 1 to 64"),
        (["--dispatch", "thread", "--batch-images", "64"], "batch_images is 64; expected 1 to 32, the largest of"),
        (["--dispatch", "thread", "--deadline", "0"], "deadline_ms is 0; expected a positive number"),
        (["--batch-delay", "-1"], "batch_delay_ms is -1; expected a positive number"),
        (["--patience", "nan"], "patience_seconds is nan; expected a positive number"),
        (["--cpus", "9999"], "--cpus names [9999]; this process may use"),
        (["--deployment", '{"artifact": "a"}'], "--deployment is not a Deployment in JSON: Object missing required"),
        (["--host", "203.0.113.1"], "cannot listen on 203.0.113.1 port 8000"),
    ],
)
def test_a_bad_option_is_one_line(empty: Path, words: list[str], expected: str) -> None:
    done = refused(str(empty), "--runtime", "null", *words)
    assert done.returncode == 2
    assert expected in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_a_changed_artifact_is_refused(onnx: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(onnx, broken)
    content = bytearray((broken / "1" / "model.onnx").read_bytes())
    content[-1] ^= 1
    (broken / "1" / "model.onnx").write_bytes(content)
    done = refused(str(broken))
    assert done.returncode == 2
    assert "1/model.onnx: its SHA-256 is not the manifest's; make the folder broken again" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_folder_that_is_no_artifact_is_refused(tmp_path: Path) -> None:
    done = refused(str(tmp_path))
    assert done.returncode == 2
    told = "an artifact is a folder that `medserve export` or `medserve adopt` made"
    assert done.stderr == f"error: {tmp_path}/artifact.json: no such file; {told}\n"


# How it ends


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_answers_what_is_under_way(empty: Path, image: NDArray[np.uint8], number: int) -> None:
    headers, body = wire.encode_request(image)
    with serving(empty, "--runtime", "null") as server, server.connected() as idle, server.connected() as busy:
        idle.connect()
        busy.putrequest("POST", server.infer_path)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            busy.putheader(name, value)
        busy.endheaders(body[:100])
        # An answer on another connection shows that the server has seen what was sent before.
        assert server.infer(image).status == 200
        server.child.send_signal(number)
        idle.sock.settimeout(PATIENCE)
        assert idle.sock.recv(1) == b""
        busy.send(body[100:])
        answer = read(busy.getresponse())
        assert answer.scores == pytest.approx(0.125)
        assert answer.headers["connection"] == "close"
        assert server.child.wait(PATIENCE) == 0


def test_told_to_stop_it_answers_what_waits(empty: Path, image: NDArray[np.uint8]) -> None:
    words = ["--runtime", "delay", "--options", '{"delays_ms": [300]}', "--dispatch", "thread"]
    with serving(empty, *words) as server, ThreadPoolExecutor(8) as clients:
        answers = [clients.submit(server.infer, image) for _ in range(8)]
        end = time.monotonic() + PATIENCE
        while _arrived(server.ask("GET", "/metrics").body.decode()) < 8:
            assert time.monotonic() < end
        server.child.terminate()
        assert server.child.wait(PATIENCE) == 0
        assert [answer.result().status for answer in answers] == [200] * 8


def _arrived(page: str) -> float:
    """Requests that were answered, or wait, or are being predicted."""
    values = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    answered = float(values['inference_requests_total{model="empty",status="200"}'])
    return answered + float(values['inference_queue_length{model="empty"}']) + 1


def test_it_listens_to_this_machine_alone(empty: Path) -> None:
    with serving(empty, "--runtime", "null") as server:
        listening = [
            connection.laddr.ip
            for connection in psutil.Process(server.child.pid).net_connections()
            if connection.status == psutil.CONN_LISTEN
        ]
    assert listening == ["127.0.0.1"]


def test_told_to_stop_while_it_loads_it_hears_it_in_the_background_too() -> None:
    """A shell script starts its background processes with SIGINT ignored."""
    code = (
        "import signal, time\nfrom medserve import process\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "process.interruptible()\nprint(flush=True)\ntime.sleep(1000)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    child.stdout.readline()
    child.terminate()
    assert child.wait(PATIENCE) != 0
    child.stdout.close()


def test_a_killed_parent_leaves_no_orphan(empty: Path) -> None:
    words = ["-m", "serve", str(empty), "--runtime", "null", "--port", "0"]
    code = (
        "import subprocess, sys, time\nfrom medserve import process\n"
        f"child = process.start({words!r}, stdout=subprocess.PIPE, env={{'MEDSERVE_EVENTS': '1'}})\n"
        "print(child.stdout.readline().decode(), flush=True)\ntime.sleep(1000)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    server = psutil.Process(json.loads(parent.stdout.readline())["pid"])
    assert server.is_running()
    parent.kill()
    parent.wait(PATIENCE)
    parent.stdout.close()
    assert _ended(server)


def _ended(server: psutil.Process) -> bool:
    """Whether a process ends before patience does; as a zombie it has ended, whoever its new parent is."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if not server.is_running() or server.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def test_the_benchmark_of_the_wrapper_measures_both() -> None:
    words = ["-m", "serve.benchmark", "--sizes", "28,224", "--blocks", "2", "--requests", "20", "--json"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    small, large = json.loads(done.stdout)
    assert (small["size"], small["requests"], small["target"]) == (28, 40, 25.0)
    assert (large["size"], large["requests"], large["target"]) == (224, 40, 60.0)
    for cost in (small, large):
        assert min(cost["bare_p50"], cost["wrapper_p50"]) > 0
        assert cost["difference_low"] <= cost["difference"] <= cost["difference_high"]
