"""The watch over a measurement: the kernel's texts, made ones and real ones, and what makes a window disturbed."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.measure import monitor
from loadtest.measure.monitor import Counters, Monitor, window
from medserve import machine
from medserve.machine import usable_cpus
from medserve.result import Gpu

TICK = 1 / os.sysconf("SC_CLK_TCK")
STAT = """cpu  60 1 20 900 40 0 7 12 0 0
cpu0 30 1 10 400 10 0 3 5 0 0
cpu1 20 0 5 300 20 0 2 7 0 0
cpu10 10 0 5 200 10 0 2 0 0 0
intr 1 2 3
"""

on_linux = pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="the counters are Linux's")


def test_idle_and_stolen_time_are_of_the_measured_cpus_only() -> None:
    assert monitor.cpu_times(STAT, frozenset({0})) == pytest.approx((410 * TICK, 5 * TICK))
    assert monitor.cpu_times(STAT, frozenset({0, 1})) == pytest.approx((730 * TICK, 12 * TICK))
    assert monitor.cpu_times(STAT, frozenset({10})) == pytest.approx((210 * TICK, 0.0))


@pytest.mark.parametrize(
    "text", ["", "cpu0 0 0 0 0 0 0 0 0 0 0\n", "cpu0 1 2 3 4\n", "cpu1 1 2 3 4 5 6 7 8 9 10\n", "intr 1 2\n\n"]
)
def test_a_system_that_tells_no_details_is_null(text: str) -> None:
    assert monitor.cpu_times(text, frozenset({0})) is None


def test_counters_are_read_from_the_texts_of_a_thread_and_a_cgroup() -> None:
    status = "Name:\tx\nvoluntary_ctxt_switches:\t9\nnonvoluntary_ctxt_switches:\t34\nx86_Thread_features:\t\n"
    assert monitor.counter(status, "nonvoluntary_ctxt_switches") == 34
    assert monitor.counter("Name:\tx\n", "nonvoluntary_ctxt_switches") is None
    assert monitor.counter("nr_periods 10\nnr_throttled 3\nthrottled_time 99\n", monitor.THROTTLED) == 3
    assert monitor.counter("usage_usec 1\n", monitor.THROTTLED) is None


def test_every_cgroup_above_a_process_may_bound_it() -> None:
    assert monitor.cgroups("0::/a/b\n") == ["a/b", "a", ""]
    found = monitor.cgroups("9:memory:/m\n4:cpu,cpuacct:/docker/x\n2:cpuset:/\n1:cpu:/\n")
    assert found == ["cpu,cpuacct/docker/x", "cpu,cpuacct/docker", "cpu,cpuacct", "cpu"]


def seen(at: float, **counters: float) -> Counters:
    start = {"idle": 10.0, "stolen": 1.0, "ours": 2.0, "throttled": 4, "switches": 5, "load": 0.5}
    return Counters(at=round(at * 1e9), **{name: value + counters.get(name, 0) for name, value in start.items()})


def test_a_quiet_window_has_no_reason() -> None:
    quiet = window(seen(0), seen(1, idle=1.5, ours=0.48, switches=7), cores=2)
    assert (quiet.start_ns, quiet.end_ns, quiet.reason) == (0, 10**9, None)
    assert (quiet.stolen, quiet.others, quiet.throttled, quiet.switches, quiet.load) == (0, 0.02, 0, 7, 0.5)


@pytest.mark.parametrize(
    ("counters", "reason"),
    [
        ({"idle": 1.7, "stolen": 0.1, "ours": 0.2}, "the hypervisor took 5.0% of the measured cores' time"),
        ({"idle": 1.0, "ours": 0.5}, "other processes took 25.0% of the measured cores' time"),
        ({"idle": 2.0, "throttled": 2}, "the cores were throttled 2 times, by heat or by quota"),
    ],
)
def test_a_disturbed_window_says_why(counters: dict[str, float], reason: str) -> None:
    assert window(seen(0), seen(1, **counters), cores=2).reason == reason


def test_the_steps_of_the_counters_are_no_disturbance() -> None:
    steps = 2.5 * TICK
    assert window(seen(0), seen(0.1, idle=0.1 - steps), cores=1).reason is None
    assert window(seen(0), seen(0.1, idle=0.1 - 2 * steps), cores=1).reason is not None


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ({}, {}, None),
        ({}, {"clock_mhz": 1950}, None),
        ({}, {"clock_mhz": 210}, None),
        ({}, {"clock_mhz": 1700}, "the GPU's clock fell from 1980 to 1700 MHz"),
        ({}, {"slowed_by": ("heat",)}, "the GPU was slowed by heat"),
        ({}, {"others": 2}, "2 other processes used the GPU"),
    ],
)
def test_a_gpu_that_is_slowed_or_shared_disturbs_a_window(
    before: dict[str, Any], after: dict[str, Any], reason: str | None
) -> None:
    plain = Gpu(clock_mhz=1980, temperature=50, watts=300.0)
    first, last = (msgspec.structs.replace(plain, **changed) for changed in (before, after))
    counters = [msgspec.structs.replace(seen(at, idle=at), gpu=gpu) for at, gpu in ((0, first), (1, last))]
    found = window(*counters, cores=1)
    assert (found.reason, found.gpu) == (reason, last)


def test_all_reasons_are_told() -> None:
    reason = window(seen(0), seen(1, stolen=0.1, throttled=1), cores=1).reason
    assert reason is not None
    assert reason.count(";") == 2


@given(st.lists(st.floats(0, 3), min_size=3, max_size=3), st.integers(1, 8))
def test_no_window_has_a_negative_number(grown: list[float], cores: int) -> None:
    idle, stolen, ours = grown
    found = window(seen(0), seen(1, idle=idle, stolen=stolen, ours=-ours), cores)
    assert found.others is not None
    assert found.stolen is not None
    assert found.others >= 0
    assert found.stolen >= 0


def test_what_the_system_does_not_tell_is_null_and_no_disturbance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "_text", lambda _path: None)
    looked = Monitor(os.getpid(), (0,))
    looked.look(1)
    (found,) = looked.close()
    assert (found.stolen, found.others, found.throttled, found.switches, found.reason) == (None,) * 5
    assert found.start_ns < found.end_ns


def test_windows_are_a_second_long_and_a_short_rest_joins_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    at = iter([0.0, 0.4, 0.8, 1.1, 1.6, 2.3, 2.5])
    monkeypatch.setattr(monitor, "_read_counters", lambda *_: seen(next(at)))
    looked = Monitor(1, (0,))
    for _ in range(6):
        looked.look(2)
    bounds = [(round(one.start_ns / 1e8), round(one.end_ns / 1e8)) for one in looked.close()]
    assert bounds == [(0, 11), (11, 25)]


def test_a_watch_that_never_looked_has_no_windows() -> None:
    assert Monitor(None, ()).close() == ()


@contextmanager
def spinning(cpu: int) -> Iterator[psutil.Process]:
    code = (
        f"import os; os.sched_setaffinity(0, [{cpu}]) if hasattr(os, 'sched_setaffinity') else None\nwhile True: pass"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as child:
        try:
            yield psutil.Process(child.pid)
        finally:
            child.kill()


def watched(server: int | None, client: int | None, cpu: int) -> monitor.Window:
    looked = Monitor(server, (cpu,))
    for _ in range(3):
        time.sleep(0.2)
        looked.look(client)
    (found,) = looked.close()
    return found


@on_linux
def test_a_busy_stranger_on_the_measured_core_disturbs() -> None:
    cpu = usable_cpus()[-1]
    with spinning(cpu) as stranger:
        while stranger.cpu_times().user < 0.05:
            time.sleep(0.01)
        found = watched(None, None, cpu)
    assert found.others is not None
    assert found.others > 0.1
    assert "other processes took" in str(found.reason)


@on_linux
def test_what_server_and_client_take_is_not_others() -> None:
    cpu = usable_cpus()[-1]
    with spinning(cpu) as child:
        while child.cpu_times().user < 0.05:
            time.sleep(0.01)
        alone, ours = watched(None, None, cpu), watched(child.pid, None, cpu)
        # Its parent stands for a Locust whose workers are its children.
        family = watched(None, os.getpid(), cpu)
    assert alone.others is not None
    for found in (ours, family):
        assert found.others is not None
        assert found.others < alone.others
        assert found.switches is not None


def test_a_look_at_a_process_that_ended_is_left_out() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    looked = Monitor(os.getpid(), ())
    looked.look(child.pid)
    assert looked.close() == () or not Path("/proc/stat").is_file()


TOPOLOGIES = {
    "one core": {0: (0,)},
    "two cores": {0: (0,), 1: (1,)},
    "two cores of two threads": {0: (0, 2), 1: (1, 3), 2: (0, 2), 3: (1, 3)},
    "neighbours are siblings": {cpu: (cpu // 2 * 2, cpu // 2 * 2 + 1) for cpu in range(8)},
}


@pytest.mark.parametrize("name", TOPOLOGIES)
@pytest.mark.parametrize("threads", [0, 1, 2, 3, 8])
def test_server_and_generator_share_no_physical_core(monkeypatch: pytest.MonkeyPatch, name: str, threads: int) -> None:
    topology = TOPOLOGIES[name]
    monkeypatch.setattr(machine, "usable_cpus", lambda: tuple(topology))
    monkeypatch.setattr(machine, "_siblings", topology.__getitem__)
    server, client = machine.divide_cpus(threads)
    cores = len(set(topology.values()))
    if threads == 0 or cores <= threads:
        assert server == client == tuple(topology)
        assert machine.spare_cpus(server + client) == ()
        return
    used = [topology[cpu] for cpu in server + client]
    assert len(used) == len(set(used)) == threads + 1, "each has a core of its own, its siblings idle"
    spare = machine.spare_cpus(server + client)
    assert not {topology[cpu] for cpu in spare} & set(used), "the parent waits on no sibling of a measured core"
    assert len(spare) == sum(topology[cpu] not in used for cpu in topology)


def test_the_waiting_parent_avoids_the_measured_cpus_and_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    before, pinned = usable_cpus(), []
    monkeypatch.setattr(machine, "spare_cpus", lambda _measured: before[-1:])
    with machine.avoid_cpus((0,)):
        pinned.append(usable_cpus())
    assert usable_cpus() == before
    assert pinned == [before[-1:] if hasattr(os, "sched_setaffinity") else before]
