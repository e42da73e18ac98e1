"""One clock and one timed loop. A timed region ends when the bytes of the scores are on the host."""

import gc
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

now = time.perf_counter_ns
"""The clock: monotonic integer nanoseconds, on Linux CLOCK_MONOTONIC and so common to all processes of a host."""


@contextmanager
def quiet_collector() -> Iterator[None]:
    """Freeze and switch off the garbage collector, so that its pauses are not the subject's."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def timed_loop(
    call: Callable[[int], object], seconds: float, at_least: int = 1, at_most: int = sys.maxsize
) -> NDArray[np.int64]:
    """Call `call(0)`, `call(1)`, ... back to back for `seconds`, at least `at_least` and at most `at_most` times.

    Returns (n, 2) int64: nanoseconds before and after each call. What the call must not hold: preparation of its
    input, first-call compilation (warm up before), and work that is still under way when it returns.
    """
    stamps: list[int] = []
    stamp = stamps.append
    with quiet_collector():
        end = now() + round(seconds * 1e9)
        index = 0
        while True:
            before = now()
            call(index)
            after = now()
            stamp(before)
            stamp(after)
            index += 1
            if (after >= end and index >= at_least) or index >= at_most:
                break
    return np.array(stamps, np.int64).reshape(-1, 2)
