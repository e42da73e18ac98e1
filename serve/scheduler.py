"""Where a prediction runs: in the event loop, in inference threads behind a bounded queue, or many at once.

Beside that, the watch that notices a thread that hangs.
"""

import asyncio
import queue
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import accumulate, pairwise
from math import ceil, isfinite
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

AVERAGED = 8
"""Predictions over which the time per request is averaged."""
ADMISSION_FRACTION = 0.8
"""Share of its deadline that a request may be expected to take, for some take longer than expected."""
QUEUED_BYTES = 32 << 20
"""Bytes of images that requests in the queue may hold together; a single request may hold more."""


class Busy(Exception):
    """A request is refused at once, for it would wait too long or take too much memory."""


class TooLate(Exception):
    """The deadline of a request passed before it was answered."""


class Watched(Protocol):
    """What may hang."""

    def busy_since(self) -> int | None:
        """Nanosecond at which the work that runs began, null when none runs, 0 when none can run any more."""


class Dispatch(Watched, Protocol):
    """One way of predicting. `batches` counts the predictions by their number of images."""

    batches: Counter[int]

    def waiting(self) -> int:
        """Requests that wait for the inference thread; none where there is no such thread."""
        return 0

    async def __call__(self, images: NDArray[np.uint8], timeout_ns: int | None = None, /) -> Outcome:
        """Await the prediction of uint8 (N, H, W, C) images; where requests wait, for at most `timeout_ns`.

        Raises Busy, TooLate, and whatever the runtime raises.
        """


def dispatch(runtimes: Sequence[Runtime], deployment: Deployment, classes: int) -> Dispatch:
    """The deployment's way of predicting, whose scores are checked: float32 (N, `classes`), all of them finite.

    `runtimes` are its instances: one, unless there is a thread for each.

    Raises BadInput for concurrent dispatch of a runtime that does not say when a prediction is due.
    """
    sizes = deployment.batch_sizes
    if deployment.dispatch == "concurrent":
        return Concurrent(runtimes[0], sizes, classes)

    def checked(runtime: Runtime, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        scores = predict(runtime, images, sizes)
        check_scores(scores, len(images), classes)
        return scores

    predicts = [partial(checked, runtime) for runtime in runtimes]
    return InThreads(predicts, deployment) if deployment.dispatch == "thread" else Inline(predicts[0])


def check_scores(scores: NDArray[np.float32], count: int, classes: int) -> None:
    """Raise RuntimeError for anything but finite numbers of shape (`count`, `classes`)."""
    if not isinstance(scores, np.ndarray) or scores.shape != (count, classes):
        shape = getattr(scores, "shape", type(scores).__name__)
        raise RuntimeError(f"the runtime returned scores of shape {shape}; expected ({count}, {classes})")
    # Python adds up the scores of one image in half a microsecond; a NumPy function takes six when the caches are cold.
    if not (isfinite(sum(scores.tolist()[0])) if count == 1 else np.isfinite(scores).all()):
        raise RuntimeError("the runtime returned scores that are not finite")


TURN_NS = 1_000_000
"""After so long the event loop looks for what has arrived before it predicts again."""


class Inline(Dispatch):
    """Predict in the event loop, first come first served.

    A turn of the loop reads every socket that is ready, but accepts one connection. If it predicted for all that it has
    read, new connections would wait for many predictions each, behind requests that came later. So it predicts for
    TURN_NS, and lets what waits go on in its next turns.
    """

    def __init__(self, predict: Predict) -> None:
        self.batches: Counter[int] = Counter()
        self._began: int | None = None
        self._predict = predict
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._spent = self._latest = 0
        self._is_ending = False

    def busy_since(self) -> int | None:
        """See Dispatch."""
        return self._began

    async def __call__(self, images: NDArray[np.uint8], _timeout_ns: int | None = None) -> Outcome:
        """See Dispatch."""
        loop = asyncio.get_running_loop()
        if self._spent >= TURN_NS or self._waiting:
            turn = loop.create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():
                    self._end_turn(loop)
                raise
        self._began = started = now()
        try:
            scores = self._predict(images)
        finally:
            self._began = None
            done = now()
            self._latest = done - started
            self._spent += self._latest
            self._end_turn(loop)
        self.batches[len(images)] += 1
        return scores, started, done

    def _end_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._is_ending:
            self._is_ending = True
            loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        """Let as many of those that wait go on as a turn has time for. Until they have, no later one overtakes them."""
        self._is_ending = False
        self._spent = left = 0
        while self._waiting and left < TURN_NS:
            turn = self._waiting.popleft()
            if not turn.done():
                self._spent = TURN_NS
                left += self._latest + 1
                turn.set_result(None)


class Concurrent(Dispatch):
    """Begin every prediction at once and await, in the event loop, the instant at which it is due."""

    def __init__(self, runtime: Runtime, batch_sizes: tuple[int, ...], classes: int) -> None:
        due: Callable[[Any], int] | None = getattr(runtime, "due", None)
        if due is None:
            raise BadInput("this runtime does not say when a prediction is due; 'dispatch' must be inline or thread")
        self.batches: Counter[int] = Counter()
        self._runtime, self._due, self._batch_sizes, self._classes = runtime, due, batch_sizes, classes

    def busy_since(self) -> int | None:
        """Nothing blocks."""
        return None

    async def __call__(self, images: NDArray[np.uint8], _timeout_ns: int | None = None) -> Outcome:
        """See Dispatch."""
        started = now()
        y = self._runtime.run(self._runtime.place(pad(images, self._batch_sizes)))
        # The loop's timers count milliseconds: rounded down, the last one would keep the loop busy until it is due.
        while (left := self._due(y) - now()) > 0:
            await asyncio.sleep(ceil(left / 1e6) / 1e3)
        scores = self._runtime.fetch(y)[: len(images)]
        check_scores(scores, len(images), self._classes)
        self.batches[len(images)] += 1
        return scores, started, now()


class Job(NamedTuple):
    """A request that waits for the thread, until `due`."""

    images: NDArray[np.uint8]
    future: "asyncio.Future[Outcome]"
    due: int


class InThreads(Dispatch):
    """Predict in one thread per instance, first come first served; at most `queue` requests of QUEUED_BYTES wait.

    A thread joins waiting requests into batches of up to `batch_images` images. It waits for more only if the last
    batch had more, and at most `batch_delay_ms`: a lone request skips the batch delay. A request is refused at once
    when, by the recent time per request, it could not be answered within its deadline; a request whose deadline has
    passed, or whose client has gone, is not computed.
    """

    def __init__(self, predicts: Sequence[Predict], deployment: Deployment) -> None:
        self.batches: Counter[int] = Counter()
        self._bound = deployment.queue
        self._most = deployment.batch_images
        self._delay = round(deployment.batch_delay_ms * 1e6)
        self._timeout = sys.maxsize if deployment.deadline_ms is None else round(deployment.deadline_ms * 1e6)
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._inside = self._peak = self._bytes = 0
        self._per_request = 0.0
        self._counting = threading.Lock()
        self._began: list[int | None] = [None] * len(predicts)
        self._threads = [
            threading.Thread(target=self._work, args=one, name="inference", daemon=True) for one in enumerate(predicts)
        ]
        for thread in self._threads:
            thread.start()

    def waiting(self) -> int:
        """Requests that wait for a thread."""
        return self._jobs.qsize()

    def busy_since(self) -> int | None:
        """See Dispatch."""
        if not all(thread.is_alive() for thread in self._threads):
            return 0
        return min((began for began in self._began if began is not None), default=None)

    async def __call__(self, images: NDArray[np.uint8], timeout_ns: int | None = None) -> Outcome:
        """See Dispatch."""
        # Only the event loop puts, so the size cannot grow between this check and the put.
        if self._jobs.qsize() >= self._bound:
            raise Busy("as many requests wait as the queue holds")
        if self._inside and self._bytes + images.nbytes > QUEUED_BYTES:
            raise Busy(f"the requests that wait hold {self._bytes} bytes already")
        timeout = self._timeout if timeout_ns is None else min(timeout_ns, self._timeout)
        # A lone request is always tried, or a time per request that is out of date would refuse all of them.
        if self._inside and self._per_request * (self._inside + 1) > ADMISSION_FRACTION * timeout * len(self._threads):
            raise Busy("so many requests wait that this one's deadline would pass")
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._inside += 1
        self._bytes += images.nbytes
        self._peak = max(self._peak, self._inside)
        due = now() + timeout
        self._jobs.put(Job(images, future, due))
        try:
            outcome = await future
        finally:
            self._inside -= 1
            self._bytes -= images.nbytes
        if now() > due:
            raise TooLate
        return outcome

    def _work(self, instance: int, predict: Predict) -> None:
        held: Job | None = None
        while True:
            first, held = held or self._jobs.get(), None
            jobs = [first]
            try:
                if not self._is_wanted(first):
                    continue
                jobs, held = self._gather(first)
                self._settle_batch(jobs, instance, predict)
            except BaseException as error:  # whatever it is, it belongs to these requests and not to this thread
                _settle([(job, error) for job in jobs])

    def _settle_batch(self, jobs: list[Job], instance: int, predict: Predict) -> None:
        images = [job.images for job in jobs]
        batch = images[0] if len(images) == 1 else np.concatenate(images)
        self._began[instance] = started = now()
        try:
            scores = predict(batch)
        finally:
            self._began[instance] = None
        done = now()
        with self._counting:
            self.batches[len(batch)] += 1
            self._per_request += ((done - started) / len(jobs) - self._per_request) / AVERAGED
        ends = list(accumulate(len(part) for part in images))
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
        """Whether the client still waits for a request, in time."""
        if job.future.done():
            return False
        if now() <= job.due:
            return True
        _settle([(job, TooLate())])
        return False


def watch(watched: Sequence[Watched], patience: float, give_up: Callable[[], None]) -> None:
    """Call `give_up` when a piece of work has lasted for `patience` seconds: it cannot be ended in any other way."""

    def look() -> None:
        while all(now() - since <= patience * 1e9 for each in watched if (since := each.busy_since()) is not None):
            time.sleep(patience / 4)
        give_up()

    threading.Thread(target=look, name="watch", daemon=True).start()


def _settle(settled: list[tuple[Job, Outcome | BaseException]]) -> None:
    """Hand outcomes over to the event loop, which is woken once for all of them."""
    with suppress(RuntimeError):  # the loop has ended, and with it all requests
        settled[0][0].future.get_loop().call_soon_threadsafe(_deliver, settled)


def _deliver(settled: list[tuple[Job, Outcome | BaseException]]) -> None:
    for job, outcome in settled:
        if job.future.done():
            continue
        if isinstance(outcome, Exception):
            job.future.set_exception(outcome)
        elif isinstance(outcome, BaseException):
            # Not an Exception itself, or it would end the event loop.
            job.future.set_exception(RuntimeError(f"{type(outcome).__name__}: {outcome}"))
        else:
            job.future.set_result(outcome)
