"""XLA on a CPU: a 3x3 convolution of a 2x2 map with padding takes tens of times as long as the same one without.

    python xla_kernel_above_map.py

The kernel is larger than the unpadded input. The same convolution of a map that was padded before, kept apart by an
optimization barrier, takes the fast path. The last stage of ResNet-50 has such maps for an image of 64 px.
"""

import json
import os
import time

os.environ["PJRT_NPROC"] = "1"

import jax
import jax.numpy as jnp
import numpy as np

SIDE, CHANNELS, REPEATS = 2, 512, 20
LAYOUT = ("NHWC", "HWIO", "NHWC")


@jax.jit
def padding_within(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=LAYOUT)


@jax.jit
def padding_before(x: jax.Array, kernel: jax.Array) -> jax.Array:
    padded = jax.lax.optimization_barrier(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))))
    return jax.lax.conv_general_dilated(padded, kernel, (1, 1), "VALID", dimension_numbers=LAYOUT)


def main() -> None:
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.standard_normal((1, SIDE, SIDE, CHANNELS)), jnp.float32)
    kernel = jnp.asarray(generator.standard_normal((3, 3, CHANNELS, CHANNELS)) / CHANNELS, jnp.float32)
    found: dict[str, object] = {"jax": jax.__version__, "jaxlib": jax.lib.__version__}
    outputs = []
    for form in (padding_within, padding_before):
        outputs.append(np.asarray(form(x, kernel)))
        times = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            form(x, kernel).block_until_ready()
            times.append(time.perf_counter() - began)
        found[f"{form.__name__}_ms"] = round(float(np.median(times)) * 1e3, 3)
    found["largest_difference"] = float(np.abs(outputs[0] - outputs[1]).max())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
