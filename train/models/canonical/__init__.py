"""One file per framework: `read(network)` and `write(network, weights)` convert to and from canonical weights.

`read` copies them to the host; `write` raises BadInput that lists the first names and shapes that do not fit.

Canonical weights are a dictionary of float32 arrays under the usual PyTorch names and layouts: `conv.weight`
(O, I, H, W), depthwise (C, 1, H, W), `fc.weight` (O, I), batch norm as `weight`, `bias`, `running_mean`,
`running_var`; no step counters.

`outputs(network, images)` returns the output of each layer that has weights, in evaluation mode, by canonical name and
in the order of computation, the logits last: float32 (N, C, H, W) or (N, C). `train.parity` compares them.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medserve.errors import BadInput

Axes = tuple[int, ...]
Arrays = dict[str, NDArray[np.float32]]
TO_CANONICAL: dict[int, Axes] = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}
"""The axes of Keras's and Flax's arrays in canonical order, by the number of dimensions."""


def to_canonical(variables: Mapping[str, tuple[Any, Axes]]) -> Arrays:
    """Copies of a network's variables, given by canonical name with their axes in canonical order."""
    return {name: np.array(np.asarray(value).transpose(axes), order="C") for name, (value, axes) in variables.items()}


def from_canonical(
    variables: Mapping[str, tuple[Any, Axes]], weights: Mapping[str, NDArray[np.float32]]
) -> Iterator[tuple[Any, NDArray[np.float32]]]:
    """Each variable with its new value in the framework's layout. Raises BadInput, with the first mismatches."""
    shapes = {name: tuple(value.shape[axis] for axis in axes) for name, (value, axes) in variables.items()}
    given = {name: value.shape for name, value in weights.items()}
    wrong = sorted(name for name in shapes.keys() | given.keys() if shapes.get(name) != given.get(name))
    if wrong:
        lines = (f"{name}: network {shapes.get(name, 'none')}, weights {given.get(name, 'none')}" for name in wrong[:5])
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise BadInput(f"the weights do not fit the network; {'; '.join(lines)}{more}")
    for name, (value, axes) in variables.items():
        yield value, weights[name].transpose(np.argsort(axes))
