"""Launches as the study runner starts them: real servers, real Locust, and nothing that outlives its parent."""

import ctypes
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pyarrow as pa
import pytest
from conftest import Stage

from loadtest import samples
from loadtest.generator.payload import AUDIT_PAIRS
from loadtest.measure.inprocess import COLD_CALLS
from loadtest.measure.launch import _mark_warmup
from medserve import store
from medserve.jobs import Launch
from medserve.machine import usable_cpus
from medserve.result import Result
from medserve.spec import Cell, Deployment, LoadProfile

PIDFD_GETFD = 438
"""The number of pidfd_getfd(2), the same on all architectures."""


def closed(seconds: float = 0.8) -> LoadProfile:
    return LoadProfile(name="closed", mode="closed-loop", seconds=seconds, warmup_seconds=0.2)


def opened() -> LoadProfile:
    return LoadProfile(name="open", mode="open-loop", rate=50.0, seconds=0.8, warmup_seconds=0.2)


def column(table: pa.Table, name: str) -> np.ndarray:
    return table[name].to_numpy()


@pytest.fixture(scope="session")
def images(stage: Stage, checkpoint: Path) -> Path:
    said = stage("train", "data", "prepare", "synthetic", "--size", "28", "--json")
    assert said.returncode == 0, said.stderr
    return Path(json.loads(said.stdout)["folder"]) / "test_images.npy"


@pytest.fixture
def plan(torchscript: Path, checkpoint: Path, images: Path, tmp_path: Path) -> Callable[..., Launch]:
    def make(*profiles: LoadProfile, runtime: str = "torchscript", artifact: Path = torchscript) -> Launch:
        deployment = Deployment(artifact=artifact.name, runtime=runtime)
        cpus = usable_cpus()
        return Launch(
            study="test",
            index=0,
            cells=tuple(Cell(deployment=deployment, profile=profile) for profile in profiles),
            artifact=str(artifact),
            results=str(tmp_path / "results"),
            images=str(images),
            expected=None if runtime == "null" else str(checkpoint / "test_scores.npy"),
            server_cpus=cpus[:1],
            client_cpus=cpus[1:2],
            seed=1,
        )

    return make


def start(plan: Launch, folder: Path) -> "subprocess.Popen[bytes]":
    store.write_json(folder / "launch.json", plan)
    words = [sys.executable, "-m", "loadtest", "launch", str(folder / "launch.json")]
    with (folder / "launch.log").open("wb") as log:
        return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=log)


def measure(plan: Launch, folder: Path) -> tuple[int, list[Result]]:
    code = start(plan, folder).wait(120)
    return code, [store.read_json(result_of(plan, cell) / "result.json", Result) for cell in plan.cells]


def result_of(plan: Launch, cell: Cell) -> Path:
    return Path(plan.results) / cell.name / str(plan.index)


def test_a_launch_measures_all_its_cells_and_reads_fairness_back(plan: Callable[..., Launch], tmp_path: Path) -> None:
    batches = LoadProfile(name="closed-32", mode="closed-loop", batch=32, seconds=0.3, warmup_seconds=0.2)
    one = plan(closed(), opened(), batches)
    code, results = measure(one, tmp_path)
    assert code == 0, (tmp_path / "launch.log").read_text()
    assert [result.status for result in results] == ["done"] * 3
    for result, cell in zip(results, one.cells, strict=True):
        folder = result_of(one, cell)
        store.check_digests(folder, result.files)
        table = samples.read(folder / "samples.parquet")
        assert not any(table["wrong"].to_pylist())
        assert set(column(table, "status")) == {200}
        assert set(column(table, "batch")) == {cell.profile.batch}
        assert 0 < sum(table["warmup"].to_pylist()) < len(table)
        order = ("intended_ns", "sent_ns", "server_received_ns", "server_sent_ns", "first_byte_ns", "done_ns")
        stamps = [column(table, name) for name in order if not table[name].null_count]
        assert len(stamps) == (6 if cell.profile.mode == "open-loop" else 5)
        assert all((early <= late).all() for early, late in itertools.pairwise(stamps))
        stages = sum(column(table, name) for name in ("queue_ns", "decode_ns", "infer_ns", "encode_ns"))
        assert (column(table, "infer_ns") > 0).all()
        assert (stages <= column(table, "server_sent_ns") - column(table, "server_received_ns")).all()
        server, client = result.process["server"], result.process["client"]
        assert tuple(server["affinity"]) == one.server_cpus
        if one.client_cpus:
            assert tuple(client["affinity"]) == one.client_cpus
        assert server["runtime"]["threads"] == 1
        assert 0 < server["cpu_seconds"] < 30
        assert server["minor_faults"] >= 0
        # It waits for every request.
        assert server["context_switches"] > len(table) / 10
        assert (client["collector_enabled"], server["collector_enabled"]) == (False, True)
        assert min(client["frozen_objects"], server["frozen_objects"]) > 1000
        assert client["connections"] == len(set(column(table, "connection")))
        assert result.process["steady"].keys() == {"start", "steady", "reason", "rises"}
        assert result.windows
        assert all(early.end_ns == late.start_ns for early, late in itertools.pairwise(result.windows))
        assert result.windows[0].start_ns < column(table, "done_ns").min()
        assert result.windows[-1].end_ns > column(table, "done_ns").max() - 1e9
        assert all(window.reason is None or window.reason.strip() for window in result.windows)
        assert ("audit.parquet" in result.files) == (cell.profile.mode == "closed-loop")
        if "audit.parquet" in result.files:
            assert len(samples.read(folder / "audit.parquet")) == 2 * AUDIT_PAIRS
    assert len(samples.read(result_of(one, one.cells[1]) / "samples.parquet")) == 50
    assert [path.name for path in Path(one.results).rglob(".*")] == []


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="sockets of another process are read back on Linux only")
def test_both_ends_send_without_delay_over_one_connection(plan: Callable[..., Launch], tmp_path: Path) -> None:
    one = plan(closed(seconds=3.0), runtime="null")
    process = start(one, tmp_path)
    for end in (child_of(process, "locust"), child_of(process, "serve")):
        while not (connections := established(end)):
            time.sleep(0.02)
        assert [option(end.pid, connection.fd, socket.TCP_NODELAY) for connection in connections] == [1]
    assert process.wait(60) == 0, (tmp_path / "launch.log").read_text()


def established(process: psutil.Process) -> list[Any]:
    return [one for one in process.net_connections("tcp") if one.status == psutil.CONN_ESTABLISHED]


def option(pid: int, descriptor: int, name: int) -> int:
    """A TCP option of another process's socket, by pidfd_getfd(2)."""
    handle = os.pidfd_open(pid)
    try:
        copy = ctypes.CDLL(None, use_errno=True).syscall(PIDFD_GETFD, handle, descriptor, 0)
    finally:
        os.close(handle)
    if copy < 0:
        pytest.skip(f"pidfd_getfd: {os.strerror(ctypes.get_errno())}")
    with socket.socket(fileno=copy) as held:
        return int(held.getsockopt(socket.IPPROTO_TCP, name) != 0)


def test_what_came_before_the_steady_state_becomes_warm_up(tmp_path: Path) -> None:
    latencies = np.where(np.arange(600) < 100, 9_000_000, 1_000_000) + np.random.default_rng(0).integers(0, 50_000, 600)
    sent = np.arange(600) * 10_000_000
    columns = {"sent_ns": sent, "done_ns": sent + latencies, "status": np.full(600, 200), "batch": np.ones(600, int)}
    path = tmp_path / "samples.parquet"
    samples.write(path, columns | {"warmup": np.arange(600) < 10}, facts={"connections": 1})
    said = _mark_warmup(path)
    table = samples.read(path)
    assert said["steady"], said
    assert 95 <= int(column(table, "warmup").sum()) <= 110
    assert column(table, "done_ns").tolist() == (sent + latencies).tolist()
    assert samples.read_facts(path) == {"connections": 1}


def test_a_server_killed_under_load_is_a_reason_and_the_next_cell_goes_on(
    plan: Callable[..., Launch], tmp_path: Path
) -> None:
    one = plan(closed(seconds=20.0), opened(), runtime="null")
    process = start(one, tmp_path)
    locust = child_of(process, "locust")
    server = child_of(process, "serve")
    while not [one for one in server.net_connections("tcp") if one.status == psutil.CONN_ESTABLISHED]:
        time.sleep(0.05)
    time.sleep(0.5)
    server.kill()
    assert process.wait(90) == 1
    assert "killed by SIGKILL" in (tmp_path / "launch.log").read_text()
    died, after = (store.read_json(result_of(one, cell) / "result.json", Result) for cell in one.cells)
    assert died.status == "failed"
    assert died.reason is not None
    assert died.reason.startswith("the server ended: killed by SIGKILL")
    partial = samples.read(result_of(one, one.cells[0]) / "samples.parquet")
    assert {0, 200} == set(column(partial, "status")), "what was recorded before and after the kill is kept"
    assert all(
        error for error, code in zip(partial["error"].to_pylist(), column(partial, "status"), strict=True) if code == 0
    )
    assert after.status == "done"
    assert after.process["server"]["pid"] != server.pid
    assert gone([locust, server])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_stopped_launch_leaves_no_orphan(plan: Callable[..., Launch], tmp_path: Path, number: int) -> None:
    one = plan(closed(seconds=60.0), runtime="null")
    process = start(one, tmp_path)
    family = [child_of(process, "locust"), child_of(process, "serve")]
    process.send_signal(number)
    assert process.wait(30) != 0
    assert gone(family)
    assert not result_of(one, one.cells[0]).exists()
    if number != signal.SIGKILL:
        assert [path.name for path in Path(one.results).rglob(".*")] == []


def child_of(process: "subprocess.Popen[bytes]", word: str, seconds: float = 60.0) -> psutil.Process:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        for child in psutil.Process(process.pid).children():
            if word in child.cmdline():
                return child
        time.sleep(0.02)
    raise AssertionError(f"the launch started no {word}")


def gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, 15)
    return not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_what_cannot_be_served_fails_all_its_cells_with_the_reason(
    plan: Callable[..., Launch], torchscript: Path, tmp_path: Path
) -> None:
    in_process = LoadProfile(name="in", mode="in-process", seconds=0.1, warmup_seconds=0.1)
    code, results = measure(plan(in_process, closed(), opened(), runtime="onnx_runtime"), tmp_path)
    assert code == 1
    assert [result.status for result in results] == ["failed"] * 3
    assert all("onnx_runtime reads onnx" in str(result.reason) for result in results)


def test_a_changed_artifact_fails_all_its_cells_with_the_reason(
    plan: Callable[..., Launch], torchscript: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(torchscript, broken)
    with (broken / "1" / "model.pt").open("ab") as model:
        model.write(b"x")
    code, results = measure(plan(closed(), artifact=broken, runtime="null"), tmp_path)
    assert code == 1
    assert "SHA-256 is not the manifest's" in str(results[0].reason)


def test_a_launch_of_nothing_is_refused(plan: Callable[..., Launch], stage: Stage, tmp_path: Path) -> None:
    path = tmp_path / "launch.json"
    store.write_json(path, msgspec.structs.replace(plan(closed()), cells=()))
    done = stage("loadtest", "launch", str(path))
    assert (done.returncode, done.stderr) == (2, "error: the launch has no cells\n")


def test_compilation_is_timed_in_a_process_of_its_own(
    plan: Callable[..., Launch], stage: Stage, tmp_path: Path
) -> None:
    cold = LoadProfile(name="cold", mode="in-process", mistake="compile-inside", seconds=0.2, warmup_seconds=0.0)
    mixed = plan(cold, LoadProfile(name="sound", mode="in-process", seconds=0.2, warmup_seconds=0.1))
    store.write_json(tmp_path / "launch.json", mixed)
    done = stage("loadtest", "launch", str(tmp_path / "launch.json"))
    assert done.returncode == 2
    assert "in a process of its own; leave the other cells to another launch" in done.stderr
    code, (result,) = measure(msgspec.structs.replace(mixed, cells=mixed.cells[:1]), tmp_path)
    assert (code, result.reason) == (0, None)
    table = samples.read(Path(mixed.results) / mixed.cells[0].name / str(mixed.index) / "samples.parquet")
    assert column(table, "warmup").tolist() == [False] * COLD_CALLS
    assert "steady" not in result.process
