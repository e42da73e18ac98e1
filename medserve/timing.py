"""The clock and the timed loop. A timed region ends when the bytes of the scores are on the host."""

import gc
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

now = time.perf_counter_ns
"""The clock: monotonic integer nanoseconds; on Linux CLOCK_MONOTONIC, which all processes of a host share."""


@contextmanager
def gc_paused() -> Iterator[None]:
    """Disable the garbage collector, so that its pauses are not measured."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def timed_loop(
    call: Callable[[int], object],
    seconds: float,
    at_least: int = 1,
    at_most: int = sys.maxsize,
    goes_on: Callable[[int, float], bool] = lambda _calls, _seconds: False,
) -> NDArray[np.int64]:
    """Call `call(0)`, `call(1)`, ... back to back for `seconds`, at least `at_least` and at most `at_most` times.

    Then as long as `goes_on(calls, seconds)` says so. Returns int64 (n, 2): nanoseconds before and after each call. A
    call must not include the preparation of its input or a compilation (warm up first), and must not return before its
    work is done.
    """
    stamps: list[int] = []
    stamp = stamps.append
    with gc_paused():
        start = now()
        end = start + round(seconds * 1e9)
        index = 0
        while True:
            before = now()
            call(index)
            after = now()
            stamp(before)
            stamp(after)
            index += 1
            if index >= at_most:
                break
            if after >= end and index >= at_least and not goes_on(index, (after - start) / 1e9):
                break
    return np.array(stamps, np.int64).reshape(-1, 2)
