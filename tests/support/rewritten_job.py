"""`python rewritten_job.py`: convolutions in JAX as they are and as `rewritten` traces them; one line of JSON each."""

import json
from itertools import product

import jax
import numpy as np
from flax import nnx

from train.models import Conv
from train.models.layers.flax_nnx import conv, rewritten


def main() -> None:
    images = np.random.default_rng(0)
    for kernel, stride, side, groups in product((1, 3), (1, 2), (1, 2, 5), (1, 8)):
        layer = conv(Conv(8, 8, kernel, stride=stride, groups=groups, bias=stride == 1), nnx.Rngs(0))
        if stride == 1:
            layer.bias[...] = jax.numpy.arange(8.0)
        x = images.standard_normal((2, side, side, 8)).astype(np.float32)
        plain = np.asarray(layer(x))
        with rewritten() as changed:
            found = np.asarray(jax.jit(layer)(x))
        same = found.shape == plain.shape and bool(np.allclose(found, plain, atol=1e-5))
        slow = kernel > 1 and (groups == 8 or kernel > side)
        print(
            json.dumps(
                {"kernel": kernel, "side": side, "groups": groups, "same": same, "as_wanted": bool(changed) == slow}
            )
        )


if __name__ == "__main__":
    main()
