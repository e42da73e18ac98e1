"""What would spoil a measurement on this machine, and how to mend it; and which runtimes can run at all.

Each examination returns one finding in plain words. Nothing here changes the machine, and no framework is imported.
"""

import shutil
import time
from collections.abc import Callable
from ctypes.util import find_library
from importlib import metadata
from pathlib import Path
from typing import Literal

from medserve import machine, plugins
from medserve.spec import Noun

Level = Literal["good", "warn", "bad"]

LOOK_SECONDS = 1.0
"""How long the processors are watched."""
BUSY = 0.05
"""Share of the usable cores' time that other processes may take."""
STOLEN = 0.01
"""Share of the time that a hypervisor may take."""
MEMORY_BYTES = 4 << 30
"""Free memory below which the largest trainings of the studies do not fit."""
DISK_BYTES = 5 << 30
"""Free disk below which a study's artifacts and records do not fit."""


class Finding(Noun, frozen=True, kw_only=True):
    """What was looked at, what was seen, and how to mend it where it is not good."""

    level: Level
    what: str
    seen: str
    mend: str | None = None


def examine(folder: Path) -> list[Finding]:
    """Look at everything; `folder` is where runs will lie."""
    looks: tuple[Callable[[], Finding], ...] = (
        _cores,
        _busy,
        _frequency,
        _hyper_threads,
        _quota,
        _memory,
        lambda: _disk(folder),
        _onnx_runtime,
        _gpu,
        _precisions,
    )
    return [look() for look in looks] + [_runtime(name) for name in plugins.names("serve.runtimes")]


def _cores() -> Finding:
    server, client = machine.divide_cpus(1)
    usable = len(machine.usable_cpus())
    if set(server) & set(client):
        seen = f"{usable} usable: server and load generator share one"
        return Finding(level="bad", what="cores", seen=seen, mend="give this process two physical cores or more")
    return Finding(level="good", what="cores", seen=f"{usable} usable: server and load generator have their own")


def _busy() -> Finding:
    before = _times()
    time.sleep(LOOK_SECONDS)
    after = _times()
    if before is None or after is None:
        return Finding(level="warn", what="busy", seen="the system does not tell", mend="close what else is running")
    total, idle, stolen = (b - a for a, b in zip(before, after, strict=True))
    busy, taken = 1 - (idle + stolen) / max(total, 1), stolen / max(total, 1)
    seen = f"other processes take {busy:.0%} of the cores, the hypervisor {taken:.1%}"
    if taken > STOLEN:
        mend = "other virtual machines compete for the processor: use a dedicated one, or more launches"
        return Finding(level="warn", what="busy", seen=seen, mend=mend)
    if busy > BUSY:
        return Finding(level="warn", what="busy", seen=seen, mend="close what else is running, then look again")
    return Finding(level="good", what="busy", seen=seen)


def _frequency() -> Finding:
    governor = _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor is None:
        return Finding(level="good", what="frequency", seen="not told by the system (usual on virtual machines)")
    if governor != "performance":
        mend = "sudo cpupower frequency-set --governor performance"
        return Finding(level="warn", what="frequency", seen=f"governor {governor}: cores slow down in gaps", mend=mend)
    return Finding(level="good", what="frequency", seen="governor performance")


def _hyper_threads() -> Finding:
    shared = [group for group in machine.fingerprint()["smt_siblings"] if len(group) > 1]
    if shared:
        seen = f"{len(shared)} cores run two hyper-threads; measurements take one of each"
        mend = "keep other work off them, or switch them off: echo off | sudo tee /sys/devices/system/cpu/smt/control"
        return Finding(level="warn", what="hyper-threads", seen=seen, mend=mend)
    return Finding(level="good", what="hyper-threads", seen="none shared")


def _quota() -> Finding:
    limit = (_text("/sys/fs/cgroup/cpu.max") or "max").split()
    if limit[0] != "max":
        cores = int(limit[0]) / int(limit[1])
        seen = f"the container may use {cores:g} cores' time and is stopped beyond"
        mend = "start it without a CPU quota (no --cpus), with cores of its own (--cpuset-cpus)"
        return Finding(level="bad", what="CPU quota", seen=seen, mend=mend)
    return Finding(level="good", what="CPU quota", seen="none")


def _memory() -> Finding:
    lines = (_text("/proc/meminfo") or "").splitlines()
    free = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
    available = free.get("MemAvailable")
    if available is None:
        return Finding(level="good", what="memory", seen="not told by the system")
    if available < MEMORY_BYTES:
        mend = f"free memory up to {MEMORY_BYTES >> 30} GiB, or run small sizes only"
        return Finding(level="warn", what="memory", seen=f"{available / 2**30:.1f} GiB free", mend=mend)
    return Finding(level="good", what="memory", seen=f"{available / 2**30:.1f} GiB free")


def _disk(folder: Path) -> Finding:
    there = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < DISK_BYTES:
        mend = "make room, or give another --out"
        return Finding(level="warn", what="disk", seen=f"{free / 2**30:.1f} GiB free at {there}", mend=mend)
    return Finding(level="good", what="disk", seen=f"{free / 2**30:.1f} GiB free at {there}")


def _onnx_runtime() -> Finding:
    found = sorted({name for one in metadata.distributions() if (name := one.name.lower()).startswith("onnxruntime")})
    if found == ["onnxruntime-gpu"]:
        seen = f"onnxruntime-gpu {metadata.version('onnxruntime-gpu')}, and no other build"
        return Finding(level="good", what="ONNX Runtime", seen=seen)
    mend = "pip uninstall --yes onnxruntime onnxruntime-gpu, then pip install onnxruntime-gpu"
    if found:
        seen = f"{', '.join(found)}: builds overwrite one another's files"
        return Finding(level="bad", what="ONNX Runtime", seen=seen, mend=mend)
    return Finding(level="bad", what="ONNX Runtime", seen="not installed", mend="pip install onnxruntime-gpu")


def _gpu() -> Finding:
    gpus = machine.fingerprint()["gpus"]
    if not gpus:
        return Finding(level="good", what="GPU", seen="none: deployments run on the processor")
    if not any(map(_installed, ("nvidia-cudnn-cu12", "nvidia-cudnn-cu13"))):
        mend = "install the CUDA builds of the frameworks (torch with CUDA, jax[cuda12], tensorflow[and-cuda])"
        return Finding(level="warn", what="GPU", seen=f"{gpus[0]}, but no CUDA libraries for Python", mend=mend)
    return Finding(level="good", what="GPU", seen="; ".join(gpus))


def _runtime(name: str) -> Finding:
    """Why a runtime is not available, from what its file says; it is not imported."""
    what, said = f"runtime {name}", plugins.literals("serve.runtimes", name)
    if absent := plugins.missing("serve.runtimes", name):
        mend = f"pip install --constraint constraints.txt --editable '.[{name.replace('_', '-')}]'"
        return Finding(level="warn", what=what, seen=f"{', '.join(absent)} is not installed", mend=mend)
    if "cpu" not in said.get("DEVICES", ("cpu",)) and not machine.fingerprint()["gpus"]:
        mend = "use a machine with an NVIDIA GPU, or another runtime of its format"
        return Finding(level="warn", what=what, seen="it runs on a GPU only, and there is none", mend=mend)
    if absent := [library for library in said.get("LIBRARIES", ()) if find_library(library) is None]:
        mend = f"install the library {', '.join(absent)} where the loader finds it (LD_LIBRARY_PATH)"
        return Finding(level="warn", what=what, seen=f"the library {', '.join(absent)} is not found", mend=mend)
    if absent := [program for program in said.get("PROGRAMS", ()) if shutil.which(program) is None]:
        seen = f"can be imported, but {', '.join(absent)}, which exporting for it needs, is not on the path"
        return Finding(level="warn", what=what, seen=seen, mend=f"install {', '.join(absent)}")
    return Finding(level="good", what=what, seen="can be imported")


def _precisions() -> Finding:
    text = _text("/proc/cpuinfo") or ""
    flags = next((line.split() for line in text.splitlines() if line.startswith(("flags", "Features"))), [])
    int8 = sorted({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"} & set(flags))
    bfloat16 = sorted({"avx512_bf16", "amx_bf16", "bf16"} & set(flags))
    seen = f"int8: {', '.join(int8) or 'no instructions'}; bfloat16: {', '.join(bfloat16) or 'no instructions'}"
    if int8 and bfloat16:
        return Finding(level="good", what="reduced precision", seen=seen)
    mend = "what the processor has no instructions for is emulated, and may be slower than float32"
    return Finding(level="warn", what="reduced precision", seen=seen, mend=mend)


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _times() -> tuple[int, int, int] | None:
    """Clock ticks of the usable CPUs since the start: all, idle (waiting for a disk included), stolen."""
    usable = {f"cpu{cpu}" for cpu in machine.usable_cpus()}
    rows = [line.split() for line in (_text("/proc/stat") or "").splitlines()]
    ticks = [list(map(int, row[1:9])) for row in rows if row and row[0] in usable]
    if not ticks:
        return None
    return sum(map(sum, ticks)), sum(one[3] + one[4] for one in ticks), sum(one[7] for one in ticks)


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
