"""What this machine computes and reads at most, in this process, whose BLAS has as many threads as are asked for."""

from collections.abc import Callable
from math import inf

import numpy as np

from medserve import machine
from medserve.result import Peaks
from medserve.timing import now

SIDES = (512, 1024, 2048)
"""Of the square matrices whose product is timed."""
WORKING_SETS = tuple(2**power for power in range(18, 30, 2))
"""In bytes: 256 KiB to 256 MiB."""
REPEATS, SECONDS = 5, 0.1
"""The fastest repetition counts, for what disturbs the machine only makes it slower; each lasts so long."""


def peaks(threads: int) -> Peaks:
    """Measure both, in about five seconds. NumPy must have been imported with its number of threads set."""
    return Peaks(
        threads=threads,
        cpus=machine.usable_cpus(),
        flops=max(2.0 * side**3 / _seconds_of_product(side) for side in SIDES),
        bandwidth={size: size / _seconds_of_reading(size) for size in WORKING_SETS},
        machine=machine.fingerprint(),
    )


def _seconds_of_product(side: int) -> float:
    first, second = (np.full((side, side), value, np.float32) for value in (0.5, 0.25))
    out = np.empty_like(first)
    return _fastest(lambda: np.matmul(first, second, out=out))


def _seconds_of_reading(size: int) -> float:
    """A scalar product: it reads both arrays, and has two operations for eight bytes."""
    first, second = np.zeros((2, size // 8), np.float32)
    return _fastest(lambda: np.dot(first, second))


def _fastest(call: Callable[[], object]) -> float:
    """Seconds of a call, of the fastest repetition."""
    fastest = inf
    for _ in range(REPEATS):
        calls, began = 0, now()
        while (spent := now() - began) < SECONDS * 1e9:
            call()
            calls += 1
        fastest = min(fastest, spent / calls)
    return fastest / 1e9
