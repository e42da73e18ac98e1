"""Several processes, one test: Locust's own master and workers, one schedule among them, one record of all."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stub_server import SHAPE, UNIFORM, Stub, stub
from test_locust_page import free_port, locust, wait_for

from loadtest import samples
from loadtest.generator import payload, schedule
from loadtest.generator.payload import Load
from loadtest.generator.records import SERVER_STAMPS, STAMPS, WorkerRecord, merge
from loadtest.measure.locust_process import generate
from loadtest.results import latency
from medserve import store
from medserve.errors import CannotRun
from medserve.spec import LoadProfile

FACTS = {"affinity": [1], "connections": 2, "cpu_seconds": 0.5, "versions": {}}
ORIGIN = 1_000_000


def opened(seconds: float = 1.0, rate: float = 100.0) -> LoadProfile:
    return LoadProfile(
        name="o", mode="open-loop", arrivals="poisson", rate=rate, users=2, seconds=seconds, warmup_seconds=0.2
    )


def plan(server: Stub, profile: LoadProfile, folder: Path, **other: Any) -> Load:
    return Load(url=server.url, model="m", profile=profile, shape=SHAPE, out=str(folder / "samples.parquet"), **other)


def check_schedule(table: pa.Table, profile: LoadProfile, seed: int = 0) -> None:
    intended = table["intended_ns"].to_numpy()
    expected = schedule.arrivals(profile, seed)
    assert np.array_equal(intended - intended[0], expected - expected[0]), "the union is not the schedule"
    # Those of a burst leave together, in any order.
    images = np.resize(np.random.default_rng(seed).permutation(payload.RANDOM_IMAGES), len(expected))
    asked = sorted(zip((intended - intended[0]).tolist(), table["image"].to_pylist(), strict=True))
    meant = sorted(zip((expected - expected[0]).tolist(), images.tolist(), strict=True))
    assert asked == meant, "not the images of one process"
    warm = intended - intended[0] + expected[0] < profile.warmup_seconds * 1e9
    assert np.array_equal(np.array(table["warmup"].to_pylist()), warm)
    assert latency.succeeded(table).all()


def test_two_processes_share_one_schedule_and_leave_one_record(tmp_path: Path) -> None:
    profile = opened()
    cpus = tuple(sorted(os.sched_getaffinity(0)))
    with stub(lambda handler: handler.scores(UNIFORM)) as server:
        generate(plan(server, profile, tmp_path, cpus=cpus, seed=3), tmp_path / "locust.log", processes=2)
        asked = server.asked
    out = tmp_path / "samples.parquet"
    table, facts = samples.read(out), samples.read_facts(out)
    check_schedule(table, profile, seed=3)
    assert len(table) == asked
    assert [worker["affinity"] for worker in facts["workers"]] == [[cpus[0]], [cpus[1 % len(cpus)]]]
    assert facts["connections"] == sum(worker["connections"] for worker in facts["workers"])
    assert set(table["connection"].to_pylist()) == set(range(facts["connections"]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["load.json", "locust.log", "samples.parquet"]


def test_the_users_of_a_closed_loop_are_spread(tmp_path: Path) -> None:
    profile = LoadProfile(name="c", mode="closed-loop", users=3, gap_seconds=0.01, seconds=0.5, warmup_seconds=0.0)
    with stub(lambda handler: handler.scores(UNIFORM)) as server:
        generate(plan(server, profile, tmp_path), tmp_path / "locust.log", processes=2)
    table, facts = samples.read(tmp_path / "samples.parquet"), samples.read_facts(tmp_path / "samples.parquet")
    assert sorted(worker["connections"] for worker in facts["workers"]) == [1, 2]
    order = np.random.default_rng(0).permutation(payload.RANDOM_IMAGES)
    images, connections = table["image"].to_numpy(), table["connection"].to_numpy()
    firsts = {int(images[connections == connection][0]) for connection in range(3)}
    assert firsts == set(order[:3].tolist())
    for connection in range(3):
        sent = images[connections == connection]
        begin = int(np.flatnonzero(order == sent[0])[0])
        assert np.array_equal(sent, order[(begin + 3 * np.arange(len(sent))) % len(order)])


@pytest.mark.parametrize("planned", [True, False])
def test_a_master_and_workers_that_know_nothing_but_its_address(tmp_path: Path, planned: bool) -> None:
    """As on several machines: the workers have no plan and no options."""
    out, port = tmp_path / "samples.parquet", str(free_port())
    with stub(lambda handler: handler.scores(UNIFORM)) as server:
        words = ["--master", "--headless", "--expect-workers", "2", "--host", server.url, "--master-bind-port", port]
        profile = opened()
        env = {}
        if planned:
            store.write_json(tmp_path / "load.json", plan(server, profile, tmp_path))
            env = {"MEDSERVE_LOAD": str(tmp_path / "load.json")}
            words += ["-u", "2", "-r", "2"]
        else:
            profile = LoadProfile(
                name="h", mode="open-loop", arrivals="bursts", burst=4, rate=80.0, seconds=1.0, warmup_seconds=0.0
            )
            words += ["--rate", "80", "--arrivals", "bursts", "--burst", "4", "-t", "1s", "--samples", str(out)]
        workers = [locust("--worker", "--master-port", port) for _ in range(2)]
        master = locust(*words, **env)
        said = [each.communicate(timeout=60)[0] for each in (master, *workers)]
    assert [each.returncode for each in (master, *workers)] == [0, 0, 0], said
    check_schedule(samples.read(out), profile)
    assert len(samples.read_facts(out)["workers"]) == 2


def workers_of(master: psutil.Process) -> list[psutil.Process]:
    """The forked workers, once they send."""
    return [child for child in master.children() if is_locust(child)]


def is_locust(child: psutil.Process) -> bool:
    try:
        return "locust" in " ".join(child.cmdline())
    except psutil.NoSuchProcess:  # it ended while it was looked at
        return False


def test_when_a_worker_dies_the_record_of_the_others_is_kept_and_said_so(tmp_path: Path) -> None:
    killed: list[int] = []

    def kill_one(pid: int) -> None:
        workers = workers_of(psutil.Process(pid))
        if not killed and server.asked >= 20 and len(workers) == 2:
            workers[0].kill()
            killed.append(workers[0].pid)

    with (
        stub(lambda handler: handler.scores(UNIFORM)) as server,
        pytest.raises(CannotRun, match=r"worker \d .*: died during the test; the record of the others is kept"),
    ):
        generate(plan(server, opened(seconds=60.0), tmp_path), tmp_path / "locust.log", processes=2, look=kill_one)
    assert killed
    table = samples.read(tmp_path / "samples.parquet")
    assert len(table) > 10
    assert latency.succeeded(table).any()
    assert (np.diff(table["intended_ns"].to_numpy()) >= 0).all()
    assert len(samples.read_facts(tmp_path / "samples.parquet")["workers"]) == 1


PROGRAM = """
import sys
from pathlib import Path
from loadtest.measure.locust_process import generate
from loadtest.generator.payload import Load
from medserve import store
plan = store.read_json(Path(sys.argv[1]), Load)
generate(plan, Path(sys.argv[1]).with_name("locust.log"), processes=2)
"""


@pytest.mark.parametrize("victim", ["program", "master"])
def test_no_worker_outlives_the_master_or_the_program(tmp_path: Path, victim: str) -> None:
    with stub(lambda handler: handler.scores(UNIFORM)) as server:
        store.write_json(tmp_path / "plan.json", plan(server, opened(seconds=60.0), tmp_path))
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "plan.json")]
        program = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            wait_for(lambda: server.asked >= 10)
            (master,) = psutil.Process(program.pid).children()
            family = [master, *workers_of(master)]
            assert len(family) == 3
            os.kill(program.pid if victim == "program" else master.pid, signal.SIGKILL)
            _, alive = psutil.wait_procs(family, timeout=10)
            assert alive == []
        finally:
            program.kill()
            program.wait()


def test_a_worker_that_cannot_follow_the_plan_says_why(tmp_path: Path) -> None:
    with (
        stub(lambda handler: handler.scores(UNIFORM)) as server,
        pytest.raises(CannotRun, match=r"worker \d .*: .*missing.npy: no such file of images"),
    ):
        there_is_none = plan(server, opened(), tmp_path, images=str(tmp_path / "missing.npy"))
        generate(there_is_none, tmp_path / "locust.log", processes=2)
    assert server.asked == 0


ROWS = st.lists(st.tuples(st.integers(0, 100), st.integers(0, 5), st.booleans()), max_size=8)


def part(rows: list[tuple[int, int, bool]], start: int, same_clock: bool) -> WorkerRecord:
    """Requests that were sent so many nanoseconds after a start, some of them on schedule."""
    sent = [start + after for after, _, _ in rows]
    columns = {
        "intended_ns": [at - 3 if scheduled else None for at, (_, _, scheduled) in zip(sent, rows, strict=True)],
        "sent_ns": sent,
        "done_ns": [at + 5 for at in sent],
        "server_received_ns": [at + 1 for at in sent],
        "connection": [number % FACTS["connections"] for _, number, _ in rows],
        "image": list(range(len(rows))),
    }
    return WorkerRecord(samples.as_table(columns), start, "there", same_clock, FACTS)


@given(st.lists(st.tuples(ROWS, st.integers(0, 10**12), st.booleans()), min_size=1, max_size=4))
def test_merged_records_are_all_rows_on_one_clock_in_their_order(
    given_parts: list[tuple[list[tuple[int, int, bool]], int, bool]],
) -> None:
    parts = [part(rows, ORIGIN if same else start, same) for rows, start, same in given_parts]
    table, facts = merge(parts, ORIGIN)
    assert len(table) == sum(len(each.table) for each in parts)
    due = [row["intended_ns"] or row["sent_ns"] for row in table.to_pylist()]
    assert due == sorted(due)
    assert facts["connections"] == 2 * len(parts) == sum(worker["connections"] for worker in facts["workers"])
    for place, each in enumerate(parts):
        mine = [row for row in table.to_pylist() if row["connection"] // 2 == place]
        for before, after in zip(each.table.to_pylist(), sorted(mine, key=lambda row: row["image"]), strict=True):
            shift = 0 if each.same_clock else ORIGIN - each.start
            for name in STAMPS:
                assert after[name] == (None if before[name] is None else before[name] + shift)
            for name in SERVER_STAMPS:
                assert after[name] == (before[name] if each.same_clock else None)
