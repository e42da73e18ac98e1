"""The machine: what a result records about it, and which CPUs a measurement uses."""

import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import medserve

DISTRIBUTIONS = (
    "numpy", "torch", "tensorflow", "keras", "jax", "jaxlib", "flax", "optax", "onnx", "onnxruntime-gpu",
    "onnxruntime", "openvino", "ai-edge-litert", "tf2onnx", "jax2onnx", "onnxscript", "uvicorn", "uvloop",
    "httptools", "msgspec", "locust", "gevent", "geventhttpclient",
)  # fmt: skip

GOVERNOR = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
"""The file that names the first CPU's frequency governor."""


def versions(*names: str) -> dict[str, str]:
    """Installed versions of the named distributions (without names: of all that matter), without importing them."""
    installed = {"python": platform.python_version(), "medserve": medserve.__version__}
    for name in names or DISTRIBUTIONS:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def fingerprint() -> dict[str, Any]:
    """The machine as plain values; a value that the system does not report is null."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpu_model(),
        "architecture": platform.machine(),
        "cores_online": os.cpu_count(),
        "cores_usable": len(usable_cpus()),
        "smt_siblings": sorted({_siblings(cpu) for cpu in usable_cpus()}),
        "governor": read_text(GOVERNOR),
        "turbo_disabled": read_text("/sys/devices/system/cpu/intel_pstate/no_turbo"),
        "virtual": "hypervisor" in (read_text("/proc/cpuinfo") or ""),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average": list(os.getloadavg()),
        "gpus": gpus(),
        "versions": versions(),
    }


def target(compiler: str) -> str:
    """What compiled code depends on: architecture, processor, its instructions, and the version of the `compiler`."""
    instructions = hashlib.sha256(" ".join(sorted(cpu_flags())).encode()).hexdigest()[:8]
    version = versions(compiler).get(compiler, "none")
    return f"{platform.machine()}, {_cpu_model()}, instructions {instructions}, {compiler} {version}"


def cpu_flags() -> list[str]:
    """The names of the processor's features, as the system reports them; none where it does not."""
    return (_cpuinfo("flags") or _cpuinfo("Features") or "").split()


def usable_cpus() -> tuple[int, ...]:
    """The CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def divide_cpus(threads: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """CPUs for the server (or the in-process timer) and for the load generator, on disjoint physical cores.

    The server gets as many cores as it has threads, the load generator the next core. If there are too few cores, or
    `threads` is 0, both get all usable CPUs; the affinities in the result show it.
    """
    cores: dict[tuple[int, ...], int] = {}
    for cpu in usable_cpus():
        cores.setdefault(_siblings(cpu), cpu)
    first = tuple(cores.values())
    if len(first) > threads > 0:
        return first[:threads], first[threads : threads + 1]
    return usable_cpus(), usable_cpus()


def spare_cpus(measured: tuple[int, ...]) -> tuple[int, ...]:
    """Usable CPUs that share no physical core with the `measured` ones."""
    taken = {sibling for cpu in measured for sibling in _siblings(cpu)}
    return tuple(cpu for cpu in usable_cpus() if cpu not in taken)


@contextmanager
def avoid_cpus(measured: tuple[int, ...]) -> Iterator[None]:
    """Keep this process off the `measured` CPUs and their hyper-thread siblings, if there are other CPUs."""
    before = usable_cpus()
    pin(spare_cpus(measured))
    try:
        yield
    finally:
        pin(before)


def pin(cpus: tuple[int, ...]) -> tuple[int, ...]:
    """Pin this process to `cpus` if the system supports it; returns the effective affinity."""
    if cpus and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)
    return usable_cpus()


def thread_environment(threads: int) -> dict[str, str]:
    """Environment variables that limit the thread pools of libraries; 0 threads: one per usable CPU."""
    threads = threads or len(usable_cpus())
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")
    return {name: str(threads) for name in names} | {"TF_NUM_INTEROP_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}


# Constants of malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_memory() -> None:
    """Make glibc keep what this process frees, where it has glibc; see mallopt(3).

    By default glibc returns large arrays to the kernel, which clears the same memory again for the next call. Threads
    have heaps of their own, which are returned whatever the threshold is: XLA computes in one.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
        mallopt(M_ARENA_MAX, 1)


USED = ("cpu_seconds", "minor_faults", "context_switches")
"""What `usage` counts."""
MANY_FAULTS = 10.0
"""Minor page faults per request or call that are worth a remark."""


def usage(pid: int | None = None) -> dict[str, float]:
    """The USED of a process, by default of this one, until now: CPU seconds, minor page faults, context switches.

    A minor fault clears and maps a page of memory at its first use. Empty where the system does not say.
    """
    folder = f"/proc/{pid or 'self'}"
    if not (stat := read_text(f"{folder}/stat")):
        return {}
    statuses = [read_text(str(path)) or "" for path in Path(folder).glob("task/*/status")]
    # The program's name, in parentheses, may hold blanks; proc(5) numbers the fields, of which the third comes next.
    fields = stat.rpartition(")")[2].split()
    ticks = os.sysconf("SC_CLK_TCK")
    switches = re.findall(r"^(?:non)?voluntary_ctxt_switches:\s*(\d+)", "\n".join(statuses), re.MULTILINE)
    return {
        "cpu_seconds": (int(fields[11]) + int(fields[12])) / ticks,
        "minor_faults": int(fields[7]),
        "context_switches": sum(map(int, switches)),
    }


def process_facts() -> dict[str, Any]:
    """Effective settings of this process: affinity, threads, allocator, peak memory, the folder of its packages."""
    status = dict(re.findall(r"^(\w+):\s*(\d+)", read_text("/proc/self/status") or "", re.MULTILINE))
    return {
        "affinity": list(usable_cpus()),
        "os_threads": int(status["Threads"]) if "Threads" in status else None,
        "allocator": os.environ.get("LD_PRELOAD") or "system",
        "peak_memory_bytes": int(status["VmHWM"]) * 1024 if "VmHWM" in status else None,
        "openmp_threads": os.environ.get("OMP_NUM_THREADS"),
        "environment": Path(sys.prefix).name,
    }


def _siblings(cpu: int) -> tuple[int, ...]:
    text = read_text(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    if text is None:
        return (cpu,)
    members: list[int] = []
    for part in text.split(","):
        low, _, high = part.partition("-")
        members.extend(range(int(low), int(high or low) + 1))
    return tuple(members)


def read_text(path: str) -> str | None:
    """A small file of the system, without the blanks around it; null where it cannot be read."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _cpuinfo(field: str) -> str | None:
    """A field of the first processor in /proc/cpuinfo."""
    found = re.search(rf"^{field}\s*:(.*)", read_text("/proc/cpuinfo") or "", re.MULTILINE)
    return found and found[1].strip()


def _cpu_model() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def gpus() -> list[str]:
    """Name, driver and memory of each NVIDIA GPU; none where its driver does not answer."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=20)
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []
