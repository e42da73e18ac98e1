"""Monitors the system during a measurement, in windows of about a second; a disturbed window has a reason.

Only the kernel's counters are read, so a look costs a fraction of a millisecond. What a system does not report is null
(macOS, a container without the details of /proc/stat).
"""

import itertools
import os
from pathlib import Path

import msgspec
import psutil

from loadtest.measure.gpu import Nvml
from medserve import machine
from medserve.result import Gpu, Window
from medserve.spec import Device
from medserve.timing import now

WINDOW_SECONDS = 1.0
"""The kernel counts CPU time in ticks of 10 ms: in a shorter window two ticks of a core are several percent."""
MAX_STOLEN = 0.01
"""Share of the measured cores' time: it delays as many requests, and one in a hundred is enough to move the p99."""
MAX_OTHERS = 0.05
"""Share of the measured cores' time: interrupts and the kernel's own threads use less, a busy process uses more."""
MAX_FALL, FALLEN = 0.03, 0.5
"""Share by which the GPU's clock may fall in a window; one below half of what it was is idle."""
TICKS_OFF = 3
"""Ticks per core by which a difference of the counters may be off; a smaller difference has no meaning."""

THROTTLED = "nr_throttled"
"""Periods in which a quota throttled a cgroup, in its cpu.stat: the same name in v1 and v2."""

_TICKS = os.sysconf("SC_CLK_TCK")
_CGROUPS = Path("/sys/fs/cgroup")
_CPUS = Path("/sys/devices/system/cpu")


class Counters(msgspec.Struct, frozen=True, kw_only=True):
    """Counters at one moment: seconds of the measured CPUs (idle, stolen) and of our processes (ours), and events."""

    at: int
    idle: float | None = None
    stolen: float | None = None
    ours: float | None = None
    throttled: int | None = None
    switches: int | None = None
    load: float | None = None
    gpu: Gpu | None = None


class Monitor:
    """Windows over the measured `cpus` (all usable ones when empty) from its creation to `close`.

    Of the GPU too where that is the `device`. `server_pid` is null for a server that is not ours; its time on the
    measured CPUs then counts as others'.
    """

    def __init__(self, server_pid: int | None, cpus: tuple[int, ...], device: Device = "cpu") -> None:
        self._server = server_pid
        self._gpu = Nvml() if device == "cuda" else None
        self._cpus = frozenset(cpus or machine.usable_cpus())
        self._throttles = _throttle_files(self._cpus)
        self._counters = [self._read(None)]
        self._latest = self._counters[0]

    def look(self, client_pid: int | None = None) -> None:
        """Read the counters: of the system, of the server and, if there is one, of the client with its workers."""
        try:
            self._latest = self._read(client_pid)
        except (OSError, psutil.Error):  # a process has just ended: the look before this one was the last
            return
        if self._latest.at - self._counters[-1].at >= WINDOW_SECONDS * 1e9:
            self._counters.append(self._latest)

    def close(self) -> tuple[Window, ...]:
        """All windows in order, to the last look. A rest of less than half a window is added to the one before it."""
        counters = self._counters
        if self._latest.at - counters[-1].at < WINDOW_SECONDS * 0.5e9 and len(counters) > 1:
            counters.pop()
        if self._latest is not counters[-1]:
            counters.append(self._latest)
        return tuple(window(before, after, len(self._cpus)) for before, after in itertools.pairwise(counters))

    def _read(self, client: int | None) -> Counters:
        pids = self._pids(client)
        found = _read_counters(pids, self._cpus, self._throttles)
        if self._gpu is None:
            return found
        ours = tuple(member for pid in pids for member in _process_tree(pid))
        return msgspec.structs.replace(found, gpu=self._gpu.read(ours))

    def _pids(self, client: int | None) -> tuple[int, ...]:
        return tuple(pid for pid in (self._server, client) if pid is not None)


def window(before: Counters, after: Counters, cores: int) -> Window:
    """What happened between two readings of `cores` measured CPUs."""
    seconds = cores * (after.at - before.at) / 1e9
    idle, stolen, ours = (_increase(getattr(before, name), getattr(after, name)) for name in ("idle", "stolen", "ours"))
    others = None
    if idle is not None and stolen is not None and ours is not None:
        # Not the kernel's busy time, which is sampled: a process that wakes in step with the samples is in all of
        # them, or in none. Idle time and the time of a process are measured.
        others = max(0.0, seconds - idle - stolen - ours)
    throttled = _increase(before.throttled, after.throttled)
    reasons = []
    if stolen is not None and stolen > MAX_STOLEN * seconds:
        reasons.append(f"the hypervisor took {stolen / seconds:.1%} of the measured cores' time")
    if throttled:
        reasons.append(f"the cores were throttled {throttled:.0f} times, by heat or by quota")
    if others is not None and others > max(MAX_OTHERS * seconds, cores * TICKS_OFF / _TICKS):
        reasons.append(f"other processes took {others / seconds:.1%} of the measured cores' time")
    reasons += _of_gpu(before.gpu, after.gpu)
    switches = _increase(before.switches, after.switches)
    return Window(
        start_ns=before.at,
        end_ns=after.at,
        stolen=None if stolen is None else round(stolen, 3),
        others=None if others is None else round(others, 3),
        throttled=None if throttled is None else int(throttled),
        switches=None if switches is None else int(switches),
        load=after.load,
        reason="; ".join(reasons) or None,
        gpu=after.gpu,
    )


def _of_gpu(before: Gpu | None, after: Gpu | None) -> list[str]:
    """What disturbed a window of the GPU."""
    if before is None or after is None:
        return []
    found = [f"the GPU was slowed by {why}" for why in after.slowed_by]
    if after.others:
        found.append(f"{after.others} other processes used the GPU")
    # An idle GPU lowers its clock by itself; one that heats up under load loses a few per cent.
    if FALLEN * before.clock_mhz < after.clock_mhz < (1 - MAX_FALL) * before.clock_mhz:
        found.append(f"the GPU's clock fell from {before.clock_mhz} to {after.clock_mhz} MHz")
    return found


def cpu_times(text: str, cpus: frozenset[int]) -> tuple[float, float] | None:
    """Idle and stolen seconds of `cpus` in the text of /proc/stat; null when it lacks them."""
    idle = stolen = counted = 0
    for line in text.splitlines():
        name, *fields = line.split() or [""]
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cpus:
            # user nice system idle iowait irq softirq steal; an emulated /proc has zeros, or fewer.
            ticks = [int(field) for field in fields]
            if len(ticks) < 8 or not any(ticks):
                return None
            idle += ticks[3] + ticks[4]
            stolen += ticks[7]
            counted += 1
    return (idle / _TICKS, stolen / _TICKS) if counted == len(cpus) else None


def counter(text: str, name: str) -> int | None:
    """The number behind `name`, with or without a colon, in a text of the kernel; null where there is none."""
    _, found, rest = text.partition(name)
    return int(rest.lstrip(":").split(None, 1)[0]) if found else None


def cgroups(text: str) -> list[str]:
    """The cgroups whose quota may limit a process, in the text of /proc/PID/cgroup: folders below the mount."""
    folders = []
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        parts = [part for part in path.split("/") if part]
        folders += ["/".join([controllers, *parts[:depth]]).strip("/") for depth in range(len(parts), -1, -1)]
    return folders


def _read_counters(pids: tuple[int, ...], cpus: frozenset[int], throttles: list[Path]) -> Counters:
    """Raises OSError or psutil.Error when one of `pids` is gone, where there is a /proc."""
    at = now()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    stat = _text(Path("/proc/stat"))
    if stat is None:
        return Counters(at=at, load=load)
    idle, stolen = cpu_times(stat, cpus) or (None, None)
    ours, switches = 0.0, 0
    for pid in pids:
        for member in _process_tree(pid):
            # With its children that have ended and were awaited.
            ours += sum(psutil.Process(member).cpu_times()[:4])
            for thread in Path(f"/proc/{member}/task").iterdir():
                # psutil reports those of the main thread alone.
                switches += counter(_text(thread / "status") or "", "nonvoluntary_ctxt_switches") or 0
    counts = [
        counter(text, THROTTLED) if path.name == "cpu.stat" else int(text)
        for path in throttles
        if (text := _text(path))
    ]
    throttled = sum(count or 0 for count in counts) if counts else None
    return Counters(at=at, idle=idle, stolen=stolen, ours=ours, throttled=throttled, switches=switches, load=load)


def _process_tree(pid: int) -> list[int]:
    """A process with its children and theirs: Locust's workers are forked from its main thread."""
    members = [pid]
    for member in members:
        members += map(int, (_text(Path(f"/proc/{member}/task/{member}/children")) or "").split())
    return members


def _throttle_files(cpus: frozenset[int]) -> list[Path]:
    """The files that count throttling: by heat, of each core and its package; by quota, of our cgroups."""
    heat = [
        _CPUS / f"cpu{cpu}" / "thermal_throttle" / f"{part}_throttle_count"
        for cpu in cpus
        for part in ("core", "package")
    ]
    quota = [_CGROUPS / folder / "cpu.stat" for folder in cgroups(_text(Path("/proc/self/cgroup")) or "")]
    return [path for path in heat if _text(path)] + [path for path in quota if THROTTLED in (_text(path) or "")]


def _increase(before: float | None, after: float | None) -> float | None:
    # A thread that ends takes its counters with it.
    return None if before is None or after is None else max(0, after - before)


def _text(path: Path) -> str | None:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return None
