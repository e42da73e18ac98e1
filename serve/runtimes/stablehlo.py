"""StableHLO serialised by `jax.export` and compiled by XLA."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from medserve.errors import CannotRun
from medserve.machine import versions
from medserve.result import Operator
from medserve.spec import Deployment
from serve.runtimes import CacheOptions, Runtime, operators, read_options

REQUIRES = ("jax",)
READS = ("stablehlo",)
CUDA = ("jax-cuda13-plugin", "jax-cuda12-plugin")
CUDA_PACKAGES = ("jax[cuda13]",)
CACHES = ("cache",)
TUNING = (
    "heap",
    (
        "layers",
        "rewritten",
        "XLA has no fast path for depthwise kernels, and for kernels larger than their input",
        "https://docs.jax.dev/en/latest/_autosummary/jax.lax.optimization_barrier.html",
        "cpu",
    ),
    (
        "convolutions",
        "eigen",
        "XLA leaves them to YNNPACK, which is slower than XLA's older path for many shapes",
        # Printed by XLA_FLAGS=--help: xla_cpu_experimental_ynn_fusion_type.
        "https://github.com/openxla/xla/blob/main/xla/debug_options_flags.cc",
        "cpu",
    ),
    (
        "kernels",
        "one by one",
        "XLA starts kernels as CUDA graphs, and writes new addresses into them where buffers have moved",
        "https://docs.nvidia.com/jax-toolbox/performance-profiling/gpu-performance",
        "cuda",
    ),
)


class Options(CacheOptions, frozen=True, kw_only=True):
    """`layers`: the network as it was exported, or with the layers that XLA computes slowly written otherwise.

    On a processor: the library of `convolutions`. On a GPU: `kernels`, whether they are started one by one.
    """

    layers: Literal["exported", "rewritten"] = "exported"
    convolutions: Literal["ynnpack", "eigen"] = "ynnpack"
    kernels: Literal["captured", "one by one"] = "captured"


class StableHloRuntime(Runtime):
    """See `serve.runtimes.Runtime`. Each batch size is compiled when it first runs."""

    def __init__(
        self, exported: jax.export.Exported, device: jax.Device, precision: str, compiler: dict[str, str]
    ) -> None:
        self._call = jax.jit(exported.call, compiler_options=compiler)
        self._device = device
        self._precision = precision

    def place(self, images: NDArray[np.uint8]) -> jax.Array:
        return jax.device_put(images, self._device)

    def run(self, x: jax.Array) -> jax.Array:
        return self._call(x)

    def synchronise(self, y: jax.Array) -> None:
        y.block_until_ready()

    def fetch(self, y: jax.Array) -> NDArray[np.float32]:
        return np.asarray(y)

    def profile(self, predict: Callable[[], object], count: int, folder: Path) -> list[Operator]:
        with jax.profiler.trace(str(folder)):
            for _ in range(count):
                predict()
        (path,) = folder.rglob("*.xplane.pb")
        took: dict[tuple[str, str], list[float]] = {}
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            for line in plane.lines:
                named = line.events if line.name.startswith("tf_XLA") else ()
                # The others are of the executor, and marks of ends.
                for event in (one for one in named if "::" not in one.name and not one.name.startswith("end: ")):
                    # `add_multiply_fusion.12` is a fusion.
                    kind = event.name.partition(".")[0].rpartition("_")[2]
                    took.setdefault((event.name, kind), []).append(event.duration_ns / 1e6)
        return operators(took, count)

    def facts(self) -> dict[str, Any]:
        return {
            "runtime": "stablehlo",
            "threads": _pool_threads(),
            "device": self._device.device_kind,
            "float32_exact": self._float32_exact(),
            "versions": versions("jax", "jaxlib", "numpy"),
        }

    def _float32_exact(self) -> bool:
        """Whether a convolution with the module's precision setting keeps all 23 bits of the mantissa."""
        value = jnp.full((8, 8, 8, 8), 1.0 + 2.0**-20, device=self._device)
        unit = jnp.eye(8, device=self._device)[:, :, None, None]
        return bool((jax.lax.conv(value, unit, (1, 1), "VALID", precision=self._precision) == value).all())


def load(model: Path, _classes: int, deployment: Deployment) -> StableHloRuntime:
    """Deserialise the module for the deployment's device.

    Raises CannotRun if the device is missing, BadInput for unknown options.
    """
    # XLA's CPU client reads its number of threads from this variable when it starts; there is no other setting.
    os.environ["PJRT_NPROC"] = str(deployment.threads)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU may be shared
    jax.config.update("jax_platforms", deployment.device)
    options = read_options(deployment, Options)
    if options.layers == "rewritten":
        model = model.parents[1] / "rewritten" / model.name
        if not model.is_file():
            raise CannotRun("this network has no layer that the exporter writes otherwise")
    if options.cache:
        jax.config.update("jax_compilation_cache_dir", options.cache)
        # Cache every module, however fast to compile or small.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    try:
        device = jax.devices(deployment.device)[0]
    except RuntimeError as error:
        raise CannotRun(
            f"jax {jax.__version__} sees no {deployment.device} device; use --device cpu: {error}"
        ) from error
    precision = "tensorfloat32" if deployment.precision == "tf32" else "float32"
    # The kinds of commands that XLA captures as CUDA graphs; processors ignore it.
    compiler = {"xla_gpu_enable_command_buffer": ""} if options.kernels == "one by one" else {}
    if options.convolutions == "eigen":
        # What XLA gives to YNNPACK: nothing. Its default is convolutions.
        compiler["xla_cpu_experimental_ynn_fusion_type"] = ""
    return StableHloRuntime(jax.export.deserialize(bytearray(model.read_bytes())), device, precision, compiler)


def _pool_threads() -> int:
    """Number of threads in XLA's pool, counted by their names, because XLA does not report it."""
    count = 0
    for path in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):  # the thread may have ended in the meantime
            count += path.read_text().startswith("tf_XLAEigen")
    return count
