"""Where a prediction runs: in the event loop, in one inference thread behind a bounded queue, or many at once."""

import asyncio
import queue
import threading
from collections.abc import Awaitable, Callable
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medserve.errors import BadInput
from medserve.spec import Deployment
from medserve.timing import now
from serve.runtimes import Runtime, pad, predict

Predict = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

Outcome = tuple[NDArray[np.float32], int, int]
"""Scores, and the nanoseconds at which the prediction began and ended."""

Dispatch = Callable[[NDArray[np.uint8]], Awaitable[Outcome]]


class QueueFull(Exception):
    """As many requests wait for the inference thread as the deployment allows."""


def dispatch(runtime: Runtime, deployment: Deployment) -> Dispatch:
    """The deployment's way of predicting. What the runtime raises, awaiting the dispatch raises.

    Raises BadInput for concurrent dispatch of a runtime that does not say when a prediction is due.
    """
    sizes = deployment.batch_sizes
    if deployment.dispatch == "concurrent":
        return concurrent(runtime, sizes)
    if deployment.dispatch == "thread":
        return InThread(lambda images: predict(runtime, images, sizes), deployment.queue)
    return inline(lambda images: predict(runtime, images, sizes))


def inline(predict: Predict) -> Dispatch:
    """Predict in the event loop: nothing waits here, the next request waits in its socket."""

    async def infer(images: NDArray[np.uint8]) -> Outcome:
        started = now()
        scores = predict(images)
        return scores, started, now()

    return infer


def concurrent(runtime: Runtime, batch_sizes: tuple[int, ...]) -> Dispatch:
    """Begin every prediction at once and await, in the event loop, the instant at which it is due."""
    due: Callable[[Any], int] | None = getattr(runtime, "due", None)
    if due is None:
        raise BadInput("this runtime does not say when a prediction is due; 'dispatch' must be inline or thread")

    async def infer(images: NDArray[np.uint8]) -> Outcome:
        started = now()
        y = runtime.run(runtime.place(pad(images, batch_sizes)))
        # The loop's timers count milliseconds: rounded down, the last one would keep the loop busy until it is due.
        while (left := due(y) - now()) > 0:
            await asyncio.sleep(ceil(left / 1e6) / 1e3)
        scores = runtime.fetch(y)[: len(images)]
        return scores, started, now()

    return infer


class InThread:
    """Predict in one thread, first come first served; at most `bound` requests wait. Raises QueueFull beyond."""

    def __init__(self, predict: Predict, bound: int) -> None:
        self._predict = predict
        self._bound = bound
        self._jobs: queue.SimpleQueue[tuple[NDArray[np.uint8], asyncio.Future[Outcome]]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="inference", daemon=True).start()

    async def __call__(self, images: NDArray[np.uint8]) -> Outcome:
        """Await the prediction of uint8 (N, H, W, C) images."""
        # Only the event loop puts, so the size cannot grow between this look and the put.
        if self._jobs.qsize() >= self._bound:
            raise QueueFull
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._jobs.put((images, future))
        return await future

    def _work(self) -> None:
        while True:
            images, future = self._jobs.get()
            settle: Callable[[Any], None] = future.set_result
            outcome: Outcome | Exception
            try:
                started = now()
                scores = self._predict(images)
                outcome = scores, started, now()
            except Exception as error:  # whatever a framework raises belongs to the request, not to this thread
                settle, outcome = future.set_exception, error
            future.get_loop().call_soon_threadsafe(_unless_cancelled, future, settle, outcome)


def _unless_cancelled(future: "asyncio.Future[Outcome]", settle: Callable[[Any], None], outcome: Any) -> None:
    if not future.cancelled():
        settle(outcome)
