"""Arrival schedules, computed before the first request: pure functions to int64 nanoseconds after the start."""

import numpy as np
from numpy.typing import NDArray

from medserve.errors import BadInput
from medserve.spec import LoadProfile


def constant(rate: float, seconds: float) -> NDArray[np.int64]:
    """Evenly spaced arrivals, the first at 0: ascending int64 nanoseconds below `seconds`. `rate` in requests a second.

    Raises BadInput unless both are positive and finite.
    """
    _check(rate, seconds)
    # The tolerance keeps a product like 0.3 * 10 = 2.9999999999999996 from losing its last arrival.
    count = max(1, int(rate * seconds + 1e-9))
    offsets: NDArray[np.int64] = np.rint(np.arange(count) * (1e9 / rate)).astype(np.int64)
    return offsets


def poisson(rate: float, seconds: float, seed: int) -> NDArray[np.int64]:
    """A Poisson process of `rate` requests a second: ascending int64 nanoseconds below `seconds`, given by `seed`.

    Gaps are exponential, so the count varies with variance equal to its mean. Raises BadInput as `constant`.
    """
    _check(rate, seconds)
    generator = np.random.default_rng(seed)
    times = np.zeros(0)
    while not times.size or times[-1] < seconds:
        gaps = generator.exponential(1 / rate, int(rate * seconds) + 16)
        times = np.concatenate([times, (times[-1] if times.size else 0.0) + np.cumsum(gaps)])
    return np.rint(times[times < seconds] * 1e9).astype(np.int64)


def arrivals(profile: LoadProfile, seed: int) -> NDArray[np.int64]:
    """The schedule of an open-loop profile, its warm-up included."""
    if profile.rate is None:
        raise BadInput(f"the open-loop profile {profile.name} has no 'rate'; give requests a second")
    seconds = profile.warmup_seconds + profile.seconds
    if profile.arrivals == "constant":
        return constant(profile.rate, seconds)
    return poisson(profile.rate, seconds, seed)


def _check(rate: float, seconds: float) -> None:
    for name, value in (("rate", rate), ("seconds", seconds)):
        if not 0 < value < float("inf"):
            raise BadInput(f"the {name} of a schedule is {value}; expected a positive number")
