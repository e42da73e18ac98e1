"""Checks of this machine: what would distort a measurement, how to mend it, and which runtimes can run.

Each check returns a finding. No check changes the machine or imports a framework.
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

OBSERVED_SECONDS = 1.0
"""How long the use of the CPUs is observed."""
MAX_BUSY = 0.05
"""Share of the usable CPUs' time that other processes may take."""
MAX_STOLEN = 0.01
"""Share of that time that the hypervisor may take."""
MEMORY_BYTES = 4 << 30
"""Free memory that the largest training of the studies needs."""
DISK_BYTES = 5 << 30
"""Free disk space that the artifacts and records of a study need."""


class Finding(Noun, frozen=True, kw_only=True):
    """The result of a check: what was checked, what was seen, and how to mend it unless the level is good."""

    level: Level
    what: str
    seen: str
    mend: str | None = None


def examine(folder: Path) -> list[Finding]:
    """Run all checks; `folder` is the folder of future runs."""
    checks: tuple[Callable[[], Finding], ...] = (
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
    return [check() for check in checks] + [_runtime(name) for name in plugins.names("serve.runtimes")]


def _cores() -> Finding:
    server, client = machine.divide_cpus(1)
    usable = len(machine.usable_cpus())
    if set(server) & set(client):
        seen = f"{usable} usable: server and load generator share a core"
        return Finding(level="bad", what="cores", seen=seen, mend="give this process two physical cores or more")
    return Finding(level="good", what="cores", seen=f"{usable} usable: server and load generator have their own")


def _busy() -> Finding:
    before = _times()
    time.sleep(OBSERVED_SECONDS)
    after = _times()
    if before is None or after is None:
        return Finding(level="warn", what="busy", seen="not reported by the system", mend="close other programs")
    total, idle, stolen = (b - a for a, b in zip(before, after, strict=True))
    busy_share, stolen_share = 1 - (idle + stolen) / max(total, 1), stolen / max(total, 1)
    seen = f"other processes take {busy_share:.0%} of the cores, the hypervisor {stolen_share:.1%}"
    if stolen_share > MAX_STOLEN:
        mend = "other virtual machines compete for the processor: use a dedicated one, or more launches"
        return Finding(level="warn", what="busy", seen=seen, mend=mend)
    if busy_share > MAX_BUSY:
        return Finding(level="warn", what="busy", seen=seen, mend="close other programs, then run doctor again")
    return Finding(level="good", what="busy", seen=seen)


def _frequency() -> Finding:
    governor = _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor is None:
        return Finding(level="good", what="frequency", seen="not reported by the system (usual on virtual machines)")
    if governor != "performance":
        mend = "sudo cpupower frequency-set --governor performance"
        return Finding(
            level="warn", what="frequency", seen=f"governor {governor}: cores slow down when idle", mend=mend
        )
    return Finding(level="good", what="frequency", seen="governor performance")


def _hyper_threads() -> Finding:
    shared = [group for group in machine.fingerprint()["smt_siblings"] if len(group) > 1]
    if shared:
        seen = f"{len(shared)} cores have two hyper-threads; measurements use one per core"
        mend = "keep other work off them, or disable SMT: echo off | sudo tee /sys/devices/system/cpu/smt/control"
        return Finding(level="warn", what="hyper-threads", seen=seen, mend=mend)
    return Finding(level="good", what="hyper-threads", seen="none shared")


def _quota() -> Finding:
    limit = (_text("/sys/fs/cgroup/cpu.max") or "max").split()
    if limit[0] != "max":
        cores = int(limit[0]) / int(limit[1])
        seen = f"the container is throttled when it uses more than {cores:g} cores"
        mend = "start the container without a CPU quota (no --cpus), on dedicated cores (--cpuset-cpus)"
        return Finding(level="bad", what="CPU quota", seen=seen, mend=mend)
    return Finding(level="good", what="CPU quota", seen="none")


def _memory() -> Finding:
    lines = (_text("/proc/meminfo") or "").splitlines()
    fields = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
    available = fields.get("MemAvailable")
    if available is None:
        return Finding(level="good", what="memory", seen="not reported by the system")
    if available < MEMORY_BYTES:
        mend = f"free {MEMORY_BYTES >> 30} GiB of memory, or run small image sizes only"
        return Finding(level="warn", what="memory", seen=f"{available / 2**30:.1f} GiB free", mend=mend)
    return Finding(level="good", what="memory", seen=f"{available / 2**30:.1f} GiB free")


def _disk(folder: Path) -> Finding:
    existing = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < DISK_BYTES:
        mend = "free disk space, or choose another --out"
        return Finding(level="warn", what="disk", seen=f"{free / 2**30:.1f} GiB free at {existing}", mend=mend)
    return Finding(level="good", what="disk", seen=f"{free / 2**30:.1f} GiB free at {existing}")


def _onnx_runtime() -> Finding:
    names = {distribution.name.lower() for distribution in metadata.distributions()}
    builds = sorted(name for name in names if name.startswith("onnxruntime"))
    if builds == ["onnxruntime-gpu"]:
        seen = f"onnxruntime-gpu {metadata.version('onnxruntime-gpu')}, and no other build"
        return Finding(level="good", what="ONNX Runtime", seen=seen)
    mend = "pip uninstall --yes onnxruntime onnxruntime-gpu, then pip install onnxruntime-gpu"
    if builds:
        seen = f"{', '.join(builds)}: builds overwrite each other's files"
        return Finding(level="bad", what="ONNX Runtime", seen=seen, mend=mend)
    return Finding(level="bad", what="ONNX Runtime", seen="not installed", mend="pip install onnxruntime-gpu")


def _gpu() -> Finding:
    gpus = machine.fingerprint()["gpus"]
    if not gpus:
        return Finding(level="good", what="GPU", seen="none: deployments run on the CPU")
    if not any(map(_installed, ("nvidia-cudnn-cu12", "nvidia-cudnn-cu13"))):
        mend = "install the CUDA builds of the frameworks (torch with CUDA, jax[cuda12], tensorflow[and-cuda])"
        return Finding(level="warn", what="GPU", seen=f"{gpus[0]}, but no CUDA libraries for Python", mend=mend)
    return Finding(level="good", what="GPU", seen="; ".join(gpus))


def _runtime(name: str) -> Finding:
    """Whether a runtime is available, from the literals in its file, without importing it."""
    what, literals = f"runtime {name}", plugins.literals("serve.runtimes", name)
    if absent := plugins.missing("serve.runtimes", name):
        mend = f"pip install --constraint constraints.txt --editable '.[{name.replace('_', '-')}]'"
        return Finding(level="warn", what=what, seen=f"{', '.join(absent)} is not installed", mend=mend)
    if "cpu" not in literals.get("DEVICES", ("cpu",)) and not machine.fingerprint()["gpus"]:
        mend = "use a machine with an NVIDIA GPU, or another runtime of its format"
        return Finding(level="warn", what=what, seen="runs on a GPU only, and this machine has none", mend=mend)
    if absent := [library for library in literals.get("LIBRARIES", ()) if find_library(library) is None]:
        mend = f"install the library {', '.join(absent)} where the loader finds it (LD_LIBRARY_PATH)"
        return Finding(level="warn", what=what, seen=f"the library {', '.join(absent)} is not found", mend=mend)
    if absent := [program for program in literals.get("PROGRAMS", ()) if shutil.which(program) is None]:
        seen = f"can be imported, but exports for it need {', '.join(absent)}, which is not on the path"
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
    mend = "use float32: a precision without instructions is emulated, and may be slower than float32"
    return Finding(level="warn", what="reduced precision", seen=seen, mend=mend)


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _times() -> tuple[int, int, int] | None:
    """Clock ticks of the usable CPUs since boot: all, idle (including I/O wait), stolen."""
    usable = {f"cpu{cpu}" for cpu in machine.usable_cpus()}
    rows = [line.split() for line in (_text("/proc/stat") or "").splitlines()]
    ticks = [list(map(int, row[1:9])) for row in rows if row and row[0] in usable]
    if not ticks:
        return None
    return sum(map(sum, ticks)), sum(cpu[3] + cpu[4] for cpu in ticks), sum(cpu[7] for cpu in ticks)


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
