"""XLA on a CPU: convolutions take longer in YNNPACK, XLA's default, than in its older path, Eigen.

    python xla_ynnpack.py

One thread, one image: the third stage of a ResNet-50 for 64 px without normalisation and activation, whose kernels are
constants of the program.
"""

import json
import os
import time

os.environ["PJRT_NPROC"] = "1"

import jax
import jax.numpy as jnp
import numpy as np

SIDE, CHANNELS, NARROW, BLOCKS, REPEATS = 4, 1024, 256, 6, 100
LAYOUT = ("NHWC", "HWIO", "NHWC")


def main() -> None:
    generator = np.random.default_rng(0)
    shapes = ((1, 1, CHANNELS, NARROW), (3, 3, NARROW, NARROW), (1, 1, NARROW, CHANNELS)) * BLOCKS
    kernels = [generator.standard_normal(shape).astype(np.float32) / np.prod(shape[:3]) ** 0.5 for shape in shapes]
    x = jnp.asarray(generator.standard_normal((1, SIDE, SIDE, CHANNELS)), jnp.float32)

    def stage(x: jax.Array) -> jax.Array:
        for kernel in kernels:
            x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT)
        return x

    found: dict[str, object] = {"jax": jax.__version__, "jaxlib": jax.lib.__version__}
    outputs = []
    for name, options in (("default", {}), ("eigen", {"xla_cpu_experimental_ynn_fusion_type": ""})):
        # Another function, or the first one's program would be used again.
        form = jax.jit(lambda x: stage(x), compiler_options=options)
        outputs.append(np.asarray(form(x)))
        times = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            form(x).block_until_ready()
            times.append(time.perf_counter() - began)
        found[f"{name}_ms"] = round(float(np.median(times)) * 1e3, 3)
    found["largest_difference"] = float(np.abs(outputs[0] - outputs[1]).max())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
