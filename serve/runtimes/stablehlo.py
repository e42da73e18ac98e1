"""StableHLO as serialised by `jax.export`, compiled by XLA."""

import contextlib
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from medserve.errors import CannotRun
from medserve.machine import versions
from medserve.spec import Deployment, Noun
from serve.runtimes import read_options

REQUIRES = ("jax",)
READS = ("stablehlo",)
CACHES = ("cache",)


class Options(Noun, frozen=True, kw_only=True):
    """`cache` is a folder for compiled modules, so that the next start of the same model only reads them."""

    cache: str = ""


class StableHloRuntime:
    """See `serve.runtimes.Runtime`. A batch size is compiled when it is run the first time."""

    def __init__(self, exported: jax.export.Exported, device: jax.Device) -> None:
        self._call = jax.jit(exported.call)
        self._device = device

    def place(self, images: NDArray[np.uint8]) -> jax.Array:
        return jax.device_put(images, self._device)

    def run(self, x: jax.Array) -> jax.Array:
        return self._call(x)

    def synchronise(self, y: jax.Array) -> None:
        y.block_until_ready()

    def fetch(self, y: jax.Array) -> NDArray[np.float32]:
        return np.asarray(y)

    def facts(self) -> dict[str, Any]:
        return {
            "runtime": "stablehlo",
            "threads": _pool_threads(),
            "device": self._device.device_kind,
            "float32_exact": self._float32_exact(),
            "versions": versions("jax", "jaxlib", "numpy"),
        }

    def _float32_exact(self) -> bool:
        """Whether a convolution, asked for float32 as the module's are, keeps all 23 bits of the mantissa."""
        value = jnp.full((8, 8, 8, 8), 1.0 + 2.0**-20, device=self._device)
        unit = jnp.eye(8, device=self._device)[:, :, None, None]
        return bool((jax.lax.conv(value, unit, (1, 1), "VALID", precision="float32") == value).all())


def load(model: Path, _classes: int, deployment: Deployment) -> StableHloRuntime:
    """Deserialise the module for the deployment's device.

    Raises CannotRun without that device, BadInput for options that it has not.
    """
    # XLA's CPU client takes its threads from this variable when it starts, and has no other way to be told.
    os.environ["PJRT_NPROC"] = str(deployment.threads)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU may be shared
    jax.config.update("jax_platforms", deployment.device)
    if cache := read_options(deployment, Options).cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        # Whatever was compiled, however fast or small it is.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    try:
        device = jax.devices(deployment.device)[0]
    except RuntimeError as error:
        raise CannotRun(
            f"jax {jax.__version__} sees no {deployment.device} device; use --device cpu: {error}"
        ) from error
    return StableHloRuntime(jax.export.deserialize(bytearray(model.read_bytes())), device)


def _pool_threads() -> int:
    """Threads in XLA's pool, counted by their name, for XLA does not tell."""
    count = 0
    for path in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):  # another thread may have ended since
            count += path.read_text().startswith("tf_XLAEigen")
    return count
