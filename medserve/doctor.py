"""Checks of this machine: what would distort a measurement, how to mend it, and which runtimes can run.

Each check returns a finding. No check changes the machine or imports a framework.
"""

import os
import platform
import re
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
ONNX_RUNTIME = "onnxruntime-gpu" if platform.system() == "Linux" and platform.machine() == "x86_64" else "onnxruntime"
"""The build for this platform: the one for GPUs has no wheels for ARM and macOS."""
DRIVERS = {12: 525, 13: 580}
"""The oldest driver for each version of CUDA (NVIDIA, CUDA Compatibility, minor version compatibility)."""
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
    runtimes = plugins.names("serve.runtimes")
    on_gpu = [_on_gpu(name) for name in runtimes if "CUDA" in plugins.literals("serve.runtimes", name)]
    return [check() for check in checks] + [_runtime(name) for name in runtimes] + on_gpu * bool(machine.gpus())


def _finding(what: str, seen: str, mend: str | None = None, level: Level = "warn") -> Finding:
    """A finding of the given level, or a good one where there is nothing to mend."""
    return Finding(level=level if mend else "good", what=what, seen=seen, mend=mend)


def _cores() -> Finding:
    server, client = machine.divide_cpus(1)
    usable = len(machine.usable_cpus())
    if not hasattr(os, "sched_setaffinity"):
        seen = f"{usable}; {platform.system()} pins no process to a core: server and load generator may share one"
        return _finding("cores", seen, "measure on Linux where a difference of a few per cent matters")
    if set(server) & set(client):
        seen = f"{usable} usable: server and load generator share a core"
        return _finding("cores", seen, "give this process two physical cores or more", "bad")
    return _finding("cores", f"{usable} usable: server and load generator have their own")


def _busy() -> Finding:
    before = _times()
    time.sleep(OBSERVED_SECONDS)
    after = _times()
    if before is None or after is None:
        return _finding("busy", "not reported by the system", "close other programs")
    total, idle, stolen = (b - a for a, b in zip(before, after, strict=True))
    busy_share, stolen_share = 1 - (idle + stolen) / max(total, 1), stolen / max(total, 1)
    seen = f"other processes take {busy_share:.0%} of the cores, the hypervisor {stolen_share:.1%}"
    if stolen_share > MAX_STOLEN:
        mend = "other virtual machines compete for the processor: use a dedicated one, or more launches"
        return _finding("busy", seen, mend)
    return _finding("busy", seen, "close other programs, then run doctor again" if busy_share > MAX_BUSY else None)


def _frequency() -> Finding:
    governor = machine.read_text(machine.GOVERNOR)
    if governor is None:
        return _finding("frequency", "not reported by the system (usual on virtual machines)")
    if governor != "performance":
        mend = "sudo cpupower frequency-set --governor performance"
        return _finding("frequency", f"governor {governor}: cores slow down when idle", mend)
    return _finding("frequency", "governor performance")


def _hyper_threads() -> Finding:
    shared = [group for group in machine.fingerprint()["smt_siblings"] if len(group) > 1]
    if shared:
        seen = f"{len(shared)} cores have two hyper-threads; measurements use one per core"
        mend = "keep other work off them, or disable SMT: echo off | sudo tee /sys/devices/system/cpu/smt/control"
        return _finding("hyper-threads", seen, mend)
    return _finding("hyper-threads", "none shared")


def _quota() -> Finding:
    limit = (machine.read_text("/sys/fs/cgroup/cpu.max") or "max").split()
    if limit[0] != "max":
        seen = f"the container is throttled when it uses more than {int(limit[0]) / int(limit[1]):g} cores"
        mend = "start the container without a CPU quota (no --cpus), on dedicated cores (--cpuset-cpus)"
        return _finding("CPU quota", seen, mend, "bad")
    return _finding("CPU quota", "none")


def _memory() -> Finding:
    found = re.search(r"^MemAvailable:\s*(\d+) kB", machine.read_text("/proc/meminfo") or "", re.MULTILINE)
    if found is None:
        return _finding("memory", "not reported by the system")
    available = int(found[1]) * 1024
    mend = f"free {MEMORY_BYTES >> 30} GiB of memory, or run small image sizes only"
    return _finding("memory", f"{available / 2**30:.1f} GiB free", mend if available < MEMORY_BYTES else None)


def _disk(folder: Path) -> Finding:
    existing = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    mend = "free disk space, or choose another --out" if free < DISK_BYTES else None
    return _finding("disk", f"{free / 2**30:.1f} GiB free at {existing}", mend)


def _onnx_runtime() -> Finding:
    names = {distribution.name.lower() for distribution in metadata.distributions()}
    builds = sorted(name for name in names if name.startswith("onnxruntime"))
    if len(builds) == 1:
        place = "processors and NVIDIA GPUs" if builds[0] == "onnxruntime-gpu" else "processors only"
        return _finding("ONNX Runtime", f"{builds[0]} {metadata.version(builds[0])}, for {place}")
    if builds:
        seen = f"{', '.join(builds)}: builds overwrite each other's files"
        return _finding(
            "ONNX Runtime", seen, f"pip uninstall --yes {' '.join(builds)}, then pip install {ONNX_RUNTIME}", "bad"
        )
    return _finding("ONNX Runtime", "not installed", f"pip install {ONNX_RUNTIME}", "bad")


def _gpu() -> Finding:
    return _finding("GPU", "; ".join(machine.gpus()) or "none: deployments run on the CPU")


def _on_gpu(name: str) -> Finding:
    """Which libraries a runtime has for the GPU, by the distributions that bring them, without importing it."""
    what, literals = f"runtime {name} on the GPU", plugins.literals("serve.runtimes", name)
    known = machine.versions(*literals["CUDA"])
    if found := [one for one in literals["CUDA"] if one in known]:
        seen = ", ".join(f"{one} {known[one]}" for one in found)
        if len(found) > 1:
            mend = f"pip uninstall --yes {' '.join(found)}, then install one; the other has its own environment"
            return _finding(what, f"{seen}: versions of CUDA that overwrite each other's files", mend, "bad")
        version = int(re.findall(r"\d+", found[0])[0])
        if (driver := _driver()) is not None and driver < DRIVERS.get(version, 0):
            seen += f"; driver {driver} is too old for CUDA {version}, which needs {DRIVERS[version]}"
            return _finding(what, seen, "update the driver, or install libraries of an older CUDA", "bad")
        for folder in filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)):
            if any(Path(folder).glob("libcudnn.so*")):
                seen += f"; another cuDNN is in {folder}, which LD_LIBRARY_PATH puts first"
                return _finding(what, seen, "unset LD_LIBRARY_PATH")
        return _finding(what, seen)
    wanted = " ".join(f"'{package}'" for package in literals["CUDA_PACKAGES"])
    seen = f"none of {', '.join(literals['CUDA'])} is installed; libraries of the system may take their place"
    return _finding(what, seen, f"pip install {wanted}, in an environment of its own where versions of CUDA differ")


def _driver() -> int | None:
    """The number before the first point of the driver's version; null without a GPU."""
    versions = [re.search(r", (\d+)\.", line) for line in machine.gpus()]
    return next((int(one[1]) for one in versions if one), None)


def _runtime(name: str) -> Finding:
    """Whether a runtime is available, from the literals in its file, without importing it."""
    what, literals = f"runtime {name}", plugins.literals("serve.runtimes", name)
    if absent := plugins.missing("serve.runtimes", name):
        mend = f"pip install --constraint constraints.txt --editable '.[{name.replace('_', '-')}]'"
        return _finding(what, f"{', '.join(absent)} is not installed", mend)
    if "cpu" not in literals.get("DEVICES", ("cpu",)) and not machine.gpus():
        mend = "use a machine with an NVIDIA GPU, or another runtime of its format"
        return _finding(what, "runs on a GPU only, and this machine has none", mend)
    if absent := [library for library in literals.get("LIBRARIES", ()) if find_library(library) is None]:
        mend = f"install the library {', '.join(absent)} where the loader finds it (LD_LIBRARY_PATH)"
        return _finding(what, f"the library {', '.join(absent)} is not found", mend)
    if absent := [program for program in literals.get("PROGRAMS", ()) if shutil.which(program) is None]:
        seen = f"can be imported, but exports for it need {', '.join(absent)}, which is not on the path"
        return _finding(what, seen, f"install {', '.join(absent)}")
    return _finding(what, "can be imported")


def _precisions() -> Finding:
    flags = set(machine.cpu_flags())
    int8 = sorted({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"} & flags)
    bfloat16 = sorted({"avx512_bf16", "amx_bf16", "bf16"} & flags)
    seen = f"int8: {', '.join(int8) or 'no instructions'}; bfloat16: {', '.join(bfloat16) or 'no instructions'}"
    mend = "use float32: a precision without instructions is emulated, and may be slower than float32"
    return _finding("reduced precision", seen, None if int8 and bfloat16 else mend)


def _times() -> tuple[int, int, int] | None:
    """Clock ticks of the usable CPUs since boot: all, idle (including I/O wait), stolen."""
    usable = {f"cpu{cpu}" for cpu in machine.usable_cpus()}
    rows = [line.split() for line in (machine.read_text("/proc/stat") or "").splitlines()]
    ticks = [list(map(int, row[1:9])) for row in rows if row and row[0] in usable]
    if not ticks:
        return None
    return sum(map(sum, ticks)), sum(cpu[3] + cpu[4] for cpu in ticks), sum(cpu[7] for cpu in ticks)
