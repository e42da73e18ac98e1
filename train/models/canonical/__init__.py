"""One file per framework: `read(network)` and `write(network, weights)` convert to and from canonical weights.

`read` copies them to the host; `write` raises BadInput that lists the first names and shapes that do not fit.

Canonical weights are a dictionary of float32 arrays under the usual PyTorch names and layouts: `conv.weight`
(O, I, H, W), depthwise (C, 1, H, W), `fc.weight` (O, I), batch norm as `weight`, `bias`, `running_mean`,
`running_var`; no step counters.

`outputs(network, images)` returns the output of each layer that has weights, in evaluation mode, by canonical name and
in the order of computation, the logits last: float32 (N, C, H, W) or (N, C). `train.parity` compares them.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from medserve.errors import BadInput


def check_fit(shapes: Mapping[str, tuple[int, ...]], weights: Mapping[str, NDArray[np.float32]]) -> None:
    """Raise BadInput, with the first mismatches, unless `weights` have the names and shapes of a network."""
    given = {name: value.shape for name, value in weights.items()}
    wrong = sorted(name for name in shapes.keys() | given.keys() if shapes.get(name) != given.get(name))
    if wrong:
        lines = (f"{name}: network {shapes.get(name, 'none')}, weights {given.get(name, 'none')}" for name in wrong[:5])
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise BadInput(f"the weights do not fit the network; {'; '.join(lines)}{more}")
