"""Layers of all families in Flax NNX."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax
import jax.numpy as jnp
from flax import nnx

from medserve.models import Architecture
from train.models import Conv

_REWRITTEN: ContextVar[list[str] | None] = ContextVar("rewritten", default=None)
HE_NORMAL = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
NARROW = nnx.initializers.normal(0.01)


class BatchNorm(nnx.BatchNorm):
    """NNX's batch norm, but with the unbiased running variance, as in PyTorch."""

    def __call__(self, x: jax.Array) -> jax.Array:
        before = self.var[...]
        y = super().__call__(x)
        if not self.use_running_average:
            added = self.var[...] - self.momentum * before
            # Scales what the batch added by n / (n - 1), as a correction, which does not round the larger part again.
            self.var[...] += added / (x.size // x.shape[-1] - 1)
        return y


class Normalise(nnx.Module):
    """uint8 images to float32, normalised with the architecture's mean and standard deviation."""

    def __init__(self, architecture: Architecture) -> None:
        self.mean = architecture.mean
        self.std = architecture.std

    def __call__(self, images: jax.Array) -> jax.Array:
        return (images.astype(jnp.float32) / 255.0 - jnp.array(self.mean)) / jnp.array(self.std)


class Sequential(nnx.Module):
    """Layers in sequence. Their names are their indices, without the `layers` that NNX's own class puts before them."""

    def __init__(self, layers: Iterable[Callable[[jax.Array], jax.Array]]) -> None:
        self.length = 0
        for layer in layers:
            setattr(self, str(self.length), layer)
            self.length += 1

    def __call__(self, x: jax.Array) -> jax.Array:
        for index in range(self.length):
            x = getattr(self, str(index))(x)
        return x


@contextmanager
def rewritten() -> Iterator[list[str]]:
    """Trace convolutions as XLA compiles them well for a processor, with the same function. Yields what is changed."""
    changed: list[str] = []
    token = _REWRITTEN.set(changed)
    try:
        yield changed
    finally:
        _REWRITTEN.reset(token)


class Convolution(nnx.Conv):
    """NNX's convolution, in another form where it is traced within `rewritten`.

    On a processor XLA has no fast path for a kernel that is larger than its input, nor for depthwise kernels. At 64 px
    ResNet-50 and EfficientNetV2-S take a third of the time in this form.
    """

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...]
        # Of reduced precision, or null.
        x = x if self.dtype is None else x.astype(self.dtype)
        size, channels = kernel.shape[0], x.shape[-1]
        depthwise = size > 1 and self.feature_group_count == channels == kernel.shape[-1]
        changed = _REWRITTEN.get()
        if changed is None or not (depthwise or size > min(x.shape[1:3])):
            return super().__call__(x)
        changed.append(f"{'depthwise ' if depthwise else ''}{size}x{size} of {x.shape[1]}x{x.shape[2]}")
        stride, pad = self.strides if isinstance(self.strides, int) else self.strides[0], size // 2
        padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        if depthwise:
            high, wide = ((side + 2 * pad - size) // stride * stride + 1 for side in x.shape[1:3])
            y = sum(
                padded[:, row : row + high : stride, column : column + wide : stride] * kernel[row, column, 0]
                for row in range(size)
                for column in range(size)
            )
        else:
            # Without the barrier XLA folds the padding back into the convolution.
            padded = jax.lax.optimization_barrier(padded)
            layout = ("NHWC", "HWIO", "NHWC")
            y = jax.lax.conv_general_dilated(padded, kernel, (stride, stride), "VALID", dimension_numbers=layout)
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)


def conv(plan: Conv, rngs: nnx.Rngs) -> Convolution:
    """The convolution of a plan."""
    pad = plan.kernel // 2
    return Convolution(
        plan.channels,
        plan.width,
        (plan.kernel, plan.kernel),
        plan.stride,
        padding=((pad, pad), (pad, pad)),
        feature_group_count=plan.groups,
        use_bias=plan.bias,
        kernel_init=HE_NORMAL,
        rngs=rngs,
    )


def batch_norm(width: int, rngs: nnx.Rngs, epsilon: float = 1e-5) -> BatchNorm:
    """Batch norm that updates its running statistics with a tenth of each batch."""
    return BatchNorm(width, momentum=0.9, epsilon=epsilon, use_fast_variance=False, rngs=rngs)


def stochastic_depth(rate: float, rngs: nnx.Rngs) -> nnx.Dropout:
    """Stochastic depth (Huang et al., 2016): drops the branch for a random share of the images, scales the rest."""
    return nnx.Dropout(rate, broadcast_dims=(1, 2, 3), rngs=rngs)


class Linear(nnx.Linear):
    """Drop-out, then the linear layer to the logits."""

    def __init__(self, features: int, classes: int, drop_out: float, rngs: nnx.Rngs) -> None:
        super().__init__(features, classes, kernel_init=NARROW, rngs=rngs)
        self.drop_out = nnx.Dropout(drop_out, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return super().__call__(self.drop_out(x))


class DenseHead(Sequential):
    """A dense layer, ReLU, and a `Linear`."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return getattr(self, "1")(nnx.relu(getattr(self, "0")(x)))


def head(features: int, classes: int, hidden: int, drop_out: float, rngs: nnx.Rngs) -> nnx.Module:
    """From features to logits: a linear layer, after a dense layer of `hidden` units unless that is 0."""
    if not hidden:
        return Linear(features, classes, drop_out, rngs)
    dense = nnx.Linear(features, hidden, kernel_init=NARROW, rngs=rngs)
    return DenseHead([dense, Linear(hidden, classes, drop_out, rngs)])
