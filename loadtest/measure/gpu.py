"""The first GPU, by NVML: what it was doing during a window, and what slowed it down; and what it computes at most."""

import os
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import Any

from medserve import machine, plugins
from medserve.errors import CannotRun
from medserve.result import Gpu, Peaks
from medserve.spec import Precision

SLOWED = {
    "nvmlClocksThrottleReasonSwPowerCap": "its power limit",
    "nvmlClocksThrottleReasonHwSlowdown": "heat or power, by hardware",
    "nvmlClocksThrottleReasonSwThermalSlowdown": "heat",
    "nvmlClocksThrottleReasonHwThermalSlowdown": "heat, by hardware",
    "nvmlClocksThrottleReasonHwPowerBrakeSlowdown": "its power supply",
}
"""NVML's reasons for a lower clock than the load asks for; being idle and a clock that was set are none."""
SIDES = (2048, 4096, 8192)
"""Of the square matrices whose product is timed."""
WORKING_SETS = tuple(2**power for power in range(20, 32, 2))
"""In bytes: 1 MiB to 1 GiB; below 100 MB they fit into the second-level cache of large GPUs."""
REPEATS, CALLS = 5, 10
"""The fastest repetition of so many calls counts."""


class Nvml:
    """Reads the first GPU's sensors, in a fraction of a millisecond. Reads nothing where there is no NVML."""

    def __init__(self) -> None:
        self._library: ModuleType | None = None
        with suppress(ImportError):
            import pynvml

            with suppress(pynvml.NVMLError):
                pynvml.nvmlInit()
                self._device = pynvml.nvmlDeviceGetHandleByIndex(0)
                self._library = pynvml

    def read(self, ours: tuple[int, ...]) -> Gpu | None:
        """What it does now; `ours` are the processes that may use it. Null where it does not say."""
        nvml = self._library
        if nvml is None:
            return None
        try:
            mask = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._device)
            using = {process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(self._device)}
            # In a container NVML may tell the host's numbers of processes, among which ours are not.
            others = using - set(ours) if using & set(ours) else set()
            return Gpu(
                clock_mhz=nvml.nvmlDeviceGetClockInfo(self._device, nvml.NVML_CLOCK_SM),
                temperature=nvml.nvmlDeviceGetTemperature(self._device, nvml.NVML_TEMPERATURE_GPU),
                watts=nvml.nvmlDeviceGetPowerUsage(self._device) / 1000,
                slowed_by=tuple(why for name, why in SLOWED.items() if mask & getattr(nvml, name, 0)),
                others=len(others),
            )
        except (nvml.NVMLError, AttributeError):  # a version without one of these functions
            return None


def peaks() -> Peaks:
    """What the first GPU computes in each precision, and moves, at most. Raises CannotRun without PyTorch or JAX."""
    reasons = []
    for library in (_with_torch, _with_jax):
        try:
            product, copy = library()
        except (CannotRun, RuntimeError) as error:
            reasons.append(str(error))
            continue
        precisions: tuple[Precision, ...] = ("float32", "tf32", "float16")
        flops = {one: max(2.0 * side**3 / product(side, one) for side in SIDES) for one in precisions}
        return Peaks(
            threads=0,
            cpus=(),
            device="cuda",
            flops=flops.pop("float32"),
            reduced=flops,
            # A copy reads and writes.
            bandwidth={size: size / copy(size // 8) for size in WORKING_SETS},
            machine=machine.fingerprint(),
        )
    raise CannotRun("; ".join(reasons))


Product = Callable[[int, Precision], float]
Copy = Callable[[int], float]
"""Seconds of a product of square matrices of a side in a precision, and of copying so many float32 numbers."""


def _with_torch() -> tuple[Product, Copy]:
    torch = plugins.need("torch", "measuring a GPU")
    if not torch.cuda.is_available():
        raise CannotRun("PyTorch sees no GPU")

    def seconds(call: Callable[[], object]) -> float:
        call()
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        took: list[float] = []
        for _ in range(REPEATS):
            before.record()
            for _ in range(CALLS):
                call()
            after.record()
            after.synchronize()
            took.append(before.elapsed_time(after) / 1e3 / CALLS)
        return min(took)

    def product(side: int, precision: Precision) -> float:
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        kind = torch.float16 if precision == "float16" else torch.float32
        first, second = (torch.randn(side, side, device="cuda", dtype=kind) for _ in range(2))
        out = torch.empty_like(first)
        return seconds(lambda: torch.matmul(first, second, out=out))

    def copy(count: int) -> float:
        values = torch.zeros(count, device="cuda")
        target = torch.empty_like(values)
        return seconds(lambda: target.copy_(values))

    return product, copy


def _with_jax() -> tuple[Product, Copy]:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU may be shared
    jax = plugins.need("jax", "measuring a GPU")
    from medserve.timing import now

    jax.devices("cuda")

    def seconds(call: Callable[[], Any]) -> float:
        call().block_until_ready()
        took = []
        for _ in range(REPEATS):
            began = now()
            for _ in range(CALLS):
                last = call()
            last.block_until_ready()
            took.append((now() - began) / 1e9 / CALLS)
        return min(took)

    def product(side: int, precision: Precision) -> float:
        kind = jax.numpy.float16 if precision == "float16" else jax.numpy.float32
        exact = "float32" if precision == "float32" else "tensorfloat32"
        first = jax.random.normal(jax.random.key(0), (side, side), kind)
        multiply = jax.jit(lambda one: jax.numpy.matmul(one, one, precision=exact))
        return seconds(lambda: multiply(first))

    def copy(count: int) -> float:
        values = jax.numpy.zeros(count)
        negate = jax.jit(lambda one: -one)
        return seconds(lambda: negate(values))

    return product, copy
