"""XLA on a CPU: a depthwise 3x3 convolution takes tens of times as long as nine shifted products.

    python xla_depthwise.py

EfficientNetV2-S has such layers.
"""

import json
import os
import time

os.environ["PJRT_NPROC"] = "1"

import jax
import jax.numpy as jnp
import numpy as np

SIDE, CHANNELS, REPEATS = 16, 256, 20


@jax.jit
def depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=CHANNELS
    )


@jax.jit
def products(x: jax.Array, kernel: jax.Array) -> jax.Array:
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(
        (
            padded[:, row : row + SIDE, column : column + SIDE] * kernel[row, column, 0]
            for row in range(3)
            for column in range(3)
        ),
        jnp.zeros_like(x),
    )


def main() -> None:
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.standard_normal((1, SIDE, SIDE, CHANNELS)), jnp.float32)
    kernel = jnp.asarray(generator.standard_normal((3, 3, 1, CHANNELS)), jnp.float32)
    found: dict[str, object] = {"jax": jax.__version__, "jaxlib": jax.lib.__version__}
    outputs = []
    for form in (depthwise, products):
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
