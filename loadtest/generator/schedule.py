"""Arrival schedules, computed before the first request: pure functions to int64 nanoseconds after the start."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medserve.errors import BadInput
from medserve.spec import LoadProfile


def constant(rate: float, seconds: float) -> NDArray[np.int64]:
    """Evenly spaced arrivals, the first at 0: ascending int64 nanoseconds below `seconds`.

    `rate` in requests per second. Raises BadInput unless both are positive and finite.
    """
    _check(rate, seconds)
    # The tolerance keeps a product like 0.3 * 10 = 2.9999999999999996 from losing its last arrival.
    count = max(1, int(rate * seconds + 1e-9))
    offsets: NDArray[np.int64] = np.rint(np.arange(count) * (1e9 / rate)).astype(np.int64)
    return offsets


def poisson(rate: float, seconds: float, seed: int) -> NDArray[np.int64]:
    """A Poisson process of `rate` requests per second: ascending int64 nanoseconds below `seconds`, given by `seed`.

    Gaps are exponential, so the count varies with variance equal to its mean. Raises BadInput as `constant`.
    """
    _check(rate, seconds)
    generator = np.random.default_rng(seed)
    times = np.zeros(0)
    while not times.size or times[-1] < seconds:
        gaps = generator.exponential(1 / rate, int(rate * seconds) + 16)
        times = np.concatenate([times, (times[-1] if times.size else 0.0) + np.cumsum(gaps)])
    return np.rint(times[times < seconds] * 1e9).astype(np.int64)


def bursts(rate: float, seconds: float, burst: int, seed: int) -> NDArray[np.int64]:
    """`rate` requests per second that arrive `burst` at a time: ascending int64 nanoseconds below `seconds`, by `seed`.

    The bursts are a Poisson process of rate / burst. Raises BadInput as `constant`, and for a burst below 1.
    """
    if burst < 1:
        raise BadInput(f"the burst of a schedule is {burst}; expected a whole number of at least 1")
    return np.repeat(poisson(rate / burst, seconds, seed), burst)


def trace(path: Path, seconds: float) -> NDArray[np.int64]:
    """Recorded arrivals, the first at 0: ascending int64 nanoseconds below `seconds`.

    The text file holds one arrival time in seconds per line, in ascending order, from any origin; a # begins a comment.
    Raises BadInput that names the first line that is different.
    """
    _check(1.0, seconds)
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not a readable trace: {error}") from None
    times: list[float] = []
    for number, line in enumerate(lines, 1):
        if not (text := line.partition("#")[0].strip()):
            continue
        try:
            time = float(text)
        except ValueError:
            time = float("nan")
        if not abs(time) < float("inf"):
            raise BadInput(f"{path}, line {number}: {text[:40]!r}; expected an arrival time in seconds")
        if times and time < times[-1]:
            raise BadInput(f"{path}, line {number}: {text[:40]} comes after {times[-1]}; expected ascending times")
        times.append(time)
    if not times:
        raise BadInput(f"{path}: no arrival time; expected one in seconds per line")
    offsets = np.array(times) - times[0]
    return np.rint(offsets[offsets < seconds] * 1e9).astype(np.int64)


def arrivals(profile: LoadProfile, seed: int) -> NDArray[np.int64]:
    """The schedule of an open-loop profile, its warm-up included. Raises BadInput for one that gives no schedule."""
    seconds = profile.warmup_seconds + profile.scheduled_seconds
    if profile.arrivals == "trace":
        if profile.trace is None or profile.rate is not None:
            raise BadInput(f"the profile {profile.name} follows a trace; give its file, and no rate beside it")
        return trace(Path(profile.trace), seconds)
    if profile.rate is None:
        raise BadInput(f"the open-loop profile {profile.name} has no 'rate'; give requests per second")
    if profile.arrivals == "bursts":
        return bursts(profile.rate, seconds, profile.burst, seed)
    if profile.arrivals == "poisson":
        return poisson(profile.rate, seconds, seed)
    return constant(profile.rate, seconds)


def _check(rate: float, seconds: float) -> None:
    for name, value in (("rate", rate), ("seconds", seconds)):
        if not 0 < value < float("inf"):
            raise BadInput(f"the {name} of a schedule is {value}; expected a positive number")
