"""Where two frameworks part: the first layer whose outputs differ, in the order in which the network runs."""

import numpy as np
from numpy.typing import NDArray

LIMIT = 1e-4
"""Outputs agree when they differ by at most this much and this share of their size."""

Outputs = dict[str, NDArray[np.float32]]


def divergence(reference: Outputs, found: Outputs) -> str | None:
    """The first layer, in the order of `reference`, that is missing, has another shape or another output.

    Both map a layer's canonical name to its float32 output. None when all agree. The size is the layer's largest
    |output|: where a sum nearly cancels, its rounding is that of what it was taken of.
    """
    for name, expected in reference.items():
        if name not in found:
            return f"{name}: missing"
        if found[name].shape != expected.shape:
            return f"{name}: shape {found[name].shape}, expected {expected.shape}"
        gap = np.abs(found[name] - expected)
        # Written so that what is not a number disagrees.
        if not gap.max() <= LIMIT + LIMIT * np.abs(expected).max():
            where = np.unravel_index(np.argmax(np.nan_to_num(gap, nan=np.inf)), gap.shape)
            place = ", ".join(map(str, where))
            return f"{name}: {found[name][where]:.6g} at [{place}], expected {expected[where]:.6g}"
    return None
