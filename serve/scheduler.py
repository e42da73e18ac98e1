"""Where a prediction runs: in the event loop, in one inference thread behind a bounded queue, or many at once."""

import asyncio
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import accumulate, pairwise
from math import ceil
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from medserve.errors import BadInput
from medserve.spec import Deployment
from medserve.timing import now
from serve.runtimes import Runtime, pad, predict

Predict = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

Outcome = tuple[NDArray[np.float32], int, int]
"""Scores, and the nanoseconds at which the prediction began and ended."""

STEADY = 8
"""Predictions over which their pace is averaged."""
HOPE = 0.8
"""Share of its deadline that a request may be expected to take, for some take longer than expected."""


class Busy(Exception):
    """A request is refused at once, for it would wait for too long."""


class TooLate(Exception):
    """A request whose deadline passed before it was answered."""


class Dispatch(Protocol):
    """One way of predicting. `batches` counts the predictions by their number of images."""

    batches: Counter[int]

    def waiting(self) -> int:
        """How many requests wait for the inference thread."""

    async def __call__(self, images: NDArray[np.uint8], within: int | None = None, /) -> Outcome:
        """Await the prediction of uint8 (N, H, W, C) images, `within` so many nanoseconds where something waits.

        Raises Busy, TooLate, and whatever the runtime raises.
        """


def dispatch(runtime: Runtime, deployment: Deployment) -> Dispatch:
    """The deployment's way of predicting.

    Raises BadInput for concurrent dispatch of a runtime that does not say when a prediction is due.
    """
    sizes = deployment.batch_sizes
    if deployment.dispatch == "concurrent":
        return Concurrent(runtime, sizes)
    if deployment.dispatch == "thread":
        return InThread(lambda images: predict(runtime, images, sizes), deployment)
    return Inline(lambda images: predict(runtime, images, sizes))


class Inline:
    """Predict in the event loop: nothing waits here, the next request waits in its socket."""

    def __init__(self, predict: Predict) -> None:
        self.batches: Counter[int] = Counter()
        self.begun: int | None = None
        self._predict = predict

    def waiting(self) -> int:
        """None waits."""
        return 0

    async def __call__(self, images: NDArray[np.uint8], _within: int | None = None) -> Outcome:
        """See Dispatch."""
        self.begun = started = now()
        try:
            scores = self._predict(images)
        finally:
            self.begun = None
        done = now()
        self.batches[len(images)] += 1
        return scores, started, done


class Concurrent:
    """Begin every prediction at once and await, in the event loop, the instant at which it is due."""

    def __init__(self, runtime: Runtime, batch_sizes: tuple[int, ...]) -> None:
        due: Callable[[Any], int] | None = getattr(runtime, "due", None)
        if due is None:
            raise BadInput("this runtime does not say when a prediction is due; 'dispatch' must be inline or thread")
        self.batches: Counter[int] = Counter()
        self._runtime, self._due, self._batch_sizes = runtime, due, batch_sizes

    def waiting(self) -> int:
        """None waits."""
        return 0

    async def __call__(self, images: NDArray[np.uint8], _within: int | None = None) -> Outcome:
        """See Dispatch."""
        started = now()
        y = self._runtime.run(self._runtime.place(pad(images, self._batch_sizes)))
        # The loop's timers count milliseconds: rounded down, the last one would keep the loop busy until it is due.
        while (left := self._due(y) - now()) > 0:
            await asyncio.sleep(ceil(left / 1e6) / 1e3)
        scores = self._runtime.fetch(y)[: len(images)]
        self.batches[len(images)] += 1
        return scores, started, now()


class Job(NamedTuple):
    """A request that waits for the thread, until `due`."""

    images: NDArray[np.uint8]
    future: "asyncio.Future[Outcome]"
    due: int


class InThread:
    """Predict in one thread, first come first served; at most `queue` requests wait.

    Requests that wait are put together up to `batch_images` images. For more of them the thread waits only where there
    were more of late, and no longer than `batch_delay_ms`: who is alone is served at once. A request is refused at once
    when by the pace of late it could not be answered within its deadline; one whose deadline has passed is not
    computed. One that has no answer after `patience_seconds` raises TimeoutError: the runtime hangs.
    """

    def __init__(self, predict: Predict, deployment: Deployment) -> None:
        self.batches: Counter[int] = Counter()
        self._predict = predict
        self._bound = deployment.queue
        self._most = deployment.batch_images
        self._delay = round(deployment.batch_delay_ms * 1e6)
        self._within = sys.maxsize if deployment.deadline_ms is None else round(deployment.deadline_ms * 1e6)
        self._patience = deployment.patience_seconds
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._inside = self._peak = 0
        self._pace = 0.0
        threading.Thread(target=self._work, name="inference", daemon=True).start()

    def waiting(self) -> int:
        """How many requests wait for the thread."""
        return self._jobs.qsize()

    async def __call__(self, images: NDArray[np.uint8], within: int | None = None) -> Outcome:
        """See Dispatch."""
        # Only the event loop puts, so the size cannot grow between this look and the put.
        if self._jobs.qsize() >= self._bound:
            raise Busy("as many requests wait as the queue holds")
        within = self._within if within is None else min(within, self._within)
        # Who comes alone is always tried, or a pace that is out of date would keep everybody out.
        if self._inside and self._pace * (self._inside + 1) > HOPE * within:
            raise Busy("so many requests wait that this one's deadline would pass")
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._inside += 1
        self._peak = max(self._peak, self._inside)
        due = now() + within
        self._jobs.put(Job(images, future, due))
        try:
            async with asyncio.timeout(self._patience):
                outcome = await future
        except TimeoutError:
            raise TimeoutError(f"no answer within {self._patience:g} s") from None
        finally:
            self._inside -= 1
        if now() > due:
            raise TooLate
        return outcome

    def _work(self) -> None:
        held: Job | None = None
        while True:
            first, held = held or self._jobs.get(), None
            if not self._is_wanted(first):
                continue
            jobs, held = self._gather(first)
            images = [job.images for job in jobs]
            batch = images[0] if len(images) == 1 else np.concatenate(images)
            started = now()
            try:
                scores = self._predict(batch)
            except Exception as error:  # whatever a framework raises belongs to the requests, not to this thread
                _settle([(job, error) for job in jobs])
                continue
            done = now()
            self.batches[len(batch)] += 1
            self._pace += ((done - started) / len(jobs) - self._pace) / STEADY
            ends = list(accumulate(len(one) for one in images))
            parts = [scores[begin:end] for begin, end in pairwise([0, *ends])]
            _settle([(job, (part, started, done)) for job, part in zip(jobs, parts, strict=True)])

    def _gather(self, first: Job) -> tuple[list[Job], Job | None]:
        """The requests of one prediction, and the first of the next one where it is already here."""
        jobs, count = [first], len(first.images)
        expected, self._peak = self._peak, self._inside
        until = now() + self._delay
        while count < self._most:
            left = until - now() if len(jobs) < expected else 0
            try:
                job = self._jobs.get(timeout=left / 1e9) if left > 0 else self._jobs.get_nowait()
            except queue.Empty:
                break
            if not self._is_wanted(job):
                continue
            if count + len(job.images) > self._most:
                return jobs, job
            jobs.append(job)
            count += len(job.images)
        return jobs, None

    def _is_wanted(self, job: Job) -> bool:
        """Whether somebody still waits for a request, in time."""
        if job.future.done():
            return False
        if now() <= job.due:
            return True
        _settle([(job, TooLate())])
        return False


def watch(inline: Inline, patience: float, give_up: Callable[[], None]) -> None:
    """Call `give_up` when a prediction has lasted for `patience` seconds: the event loop itself cannot tell."""

    def look() -> None:
        begun = None
        while begun is None or now() - begun <= patience * 1e9:
            time.sleep(patience / 4)
            begun = inline.begun
        give_up()

    threading.Thread(target=look, name="watch", daemon=True).start()


def _settle(settled: list[tuple[Job, Outcome | Exception]]) -> None:
    """Hand outcomes over to the event loop, which is woken once for all of them."""
    with suppress(RuntimeError):  # the loop has ended, and with it all who waited
        settled[0][0].future.get_loop().call_soon_threadsafe(_deliver, settled)


def _deliver(settled: list[tuple[Job, Outcome | Exception]]) -> None:
    for job, outcome in settled:
        if job.future.done():
            continue
        if isinstance(outcome, Exception):
            job.future.set_exception(outcome)
        else:
            job.future.set_result(outcome)
