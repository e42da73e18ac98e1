"""One folder per family of networks, with one file per framework: `build(architecture, classes, seed, ...)`.

A network maps uint8 (N, H, W, C) images to float32 logits (N, classes). Normalisation and layout are part of it, so
that training, export and serving share them. All conventions are explicit. Initialisation: convolutions He normal (fan
out; of a depthwise kernel over all channels, as in PyTorch), batch norm ones and zeros, biases zeros, the head normal
with standard deviation 0.01. Batch norm: epsilon 1e-5 (EfficientNetV2: 1e-3), running statistics updated with a tenth
of each batch, unbiased running variance. Padding: half the kernel. Drop-out and stochastic depth scale the remaining
activations up and are off in evaluation. Each framework draws its own masks, so with them training is equal between
frameworks only in expectation.

`build` returns the network in training mode, its weights seeded. The `__init__.py` of a family holds the plan that its
framework files follow, and `maps(architecture, size)`: each convolution with the side of its input, a square map, in
pixels. `layers` has what all families share within a framework. `canonical` converts a network's
weights to the interchange format (PyTorch's names and layouts) and back.
"""

from importlib import import_module
from typing import NamedTuple

from medserve.models import Architecture, Computation

FLOAT_BYTES = 4


class Conv(NamedTuple):
    """A convolution of `channels` to `width` channels that pads half its kernel on every side.

    With `groups` it is depthwise: one group per channel. `activation` says whether an activation follows.
    """

    channels: int
    width: int
    kernel: int
    stride: int = 1
    groups: int = 1
    bias: bool = False
    activation: bool = True

    def output(self, side: int) -> int:
        """The side of its output, of an input with this side."""
        return (side - 1) // self.stride + 1


def computation(architecture: Architecture, size: int, classes: int, hidden: int = 0) -> Computation:
    """What a network computes and moves for an image with sides of `size` pixels, in any framework."""
    dense = [(architecture.features, hidden), (hidden, classes)] if hidden else [(architecture.features, classes)]
    multiply_adds, moved = [], []
    for layer, side in import_module(f"train.models.{architecture.family}").maps(architecture, size):
        pixels = layer.output(side) ** 2
        multiply_adds.append(pixels * layer.width * (layer.channels // layer.groups) * layer.kernel**2)
        moved.append(FLOAT_BYTES * (side**2 * layer.channels + pixels * layer.width))
    for inputs, outputs in dense:
        multiply_adds.append(inputs * outputs)
        moved.append(FLOAT_BYTES * (inputs + outputs))
    return Computation(
        multiply_adds=sum(multiply_adds),
        weight_bytes=FLOAT_BYTES * architecture.parameters(classes, hidden),
        activation_bytes=sum(moved),
        largest_bytes=max(moved),
    )
