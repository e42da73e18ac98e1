"""No model, only scripted delays: it tests load generators, because the true latency of each request is known.

The server reports the delay that each request actually had as its `infer` stage.
"""

import random
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from medserve.errors import BadInput
from medserve.machine import versions
from medserve.spec import Deployment
from medserve.timing import now
from serve.runtimes import Runtime, RuntimeOptions, read_options

REQUIRES = ()
READS = ()
NotNegative = Annotated[float, msgspec.Meta(ge=0)]


class Options(RuntimeOptions, frozen=True, kw_only=True):
    """The script. Delays apply in turn or, with `shares` as weights, at random with `seed`.

    A stall begins `stall_at` seconds after the first prediction and lasts `stall_seconds`, and so again `stall_every`
    seconds later, unless that is 0. A prediction that runs or starts during a stall is done at its end. A `busy` server
    computes all that time; any other sleeps.
    """

    delays_ms: Annotated[tuple[NotNegative, ...], msgspec.Meta(min_length=1)] = (0.0,)
    shares: tuple[NotNegative, ...] | None = None
    seed: int = 0
    stall_at: NotNegative = 0.0
    stall_seconds: NotNegative = 0.0
    stall_every: NotNegative = 0.0
    busy: bool = False


class DelayRuntime(Runtime):
    """See `serve.runtimes.Runtime`. `y` is the time at which the prediction is done, and its number of images."""

    def __init__(self, classes: int, deployment: Deployment, options: Options) -> None:
        self._scores = np.full((deployment.batch_sizes[-1], classes), 1.0 / classes, np.float32)
        # Each batch size runs once before the server is ready; the script starts after that.
        self._before_ready = len(deployment.batch_sizes)
        self._delays = _delays(options)
        self._stall_at, self._stall = round(options.stall_at * 1e9), round(options.stall_seconds * 1e9)
        self._every = round(options.stall_every * 1e9)
        self._busy = options.busy
        self._first: int | None = None

    def run(self, x: NDArray[np.uint8]) -> tuple[int, int]:
        started = now()
        if self._before_ready:
            self._before_ready -= 1
            return started, len(x)
        if self._first is None:
            self._first = started
        due = started + next(self._delays)
        stall_start = self._first + self._stall_at
        if self._every and due > stall_start:
            stall_start += (due - stall_start) // self._every * self._every
        stall_end = stall_start + self._stall
        if started < stall_end and due >= stall_start:
            due = max(due, stall_end)
        return due, len(x)

    def due(self, y: tuple[int, int]) -> int:
        return y[0]

    def synchronise(self, y: tuple[int, int]) -> None:
        while (left := y[0] - now()) > 0:
            if not self._busy:
                time.sleep(left / 1e9)

    def fetch(self, y: tuple[int, int]) -> NDArray[np.float32]:
        self.synchronise(y)
        return self._scores[: y[1]]

    def facts(self) -> dict[str, Any]:
        return {"runtime": "delay", "threads": 1, "device": "none", "versions": versions("numpy")}


def load(_model: Path, classes: int, deployment: Deployment) -> DelayRuntime:
    """A runtime without a model, for artifacts of any format. Raises BadInput for an invalid script."""
    options = read_options(deployment, Options)
    shares = options.shares
    if shares is not None and (len(shares) != len(options.delays_ms) or sum(shares) <= 0):
        raise BadInput(
            f"the options of delay: 'shares' is {list(shares)}; expected a weight for each of the "
            f"{len(options.delays_ms)} 'delays_ms', not all 0"
        )
    return DelayRuntime(classes, deployment, options)


def _delays(options: Options) -> Iterator[int]:
    """Yield the delay of each prediction in nanoseconds, without end."""
    delays = [round(delay * 1e6) for delay in options.delays_ms]
    if options.shares is None:
        yield from cycle(delays)
    generator = random.Random(options.seed)  # noqa: S311 (reproducible, not secret)
    while True:
        yield generator.choices(delays, options.shares)[0]
