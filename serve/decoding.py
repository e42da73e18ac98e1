"""The one thread in which expensive bodies are decoded, beside the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from medserve.spec import Deployment
from medserve.timing import now
from serve.scheduler import Busy, TooLate

Decoded = TypeVar("Decoded")


class Decoding:
    """Decode bodies in one thread beside the event loop: an image or a compressed body may take long.

    At most `queue` bodies wait.
    """

    def __init__(self, deployment: Deployment) -> None:
        self._bound = deployment.queue
        self._waiting = 0
        self._began: int | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="decode")

    def busy_since(self) -> int | None:
        """Nanosecond at which the decoding that runs began, null when none runs."""
        return self._began

    async def __call__(self, decode: Callable[[], Decoded], timeout_ns: int | None) -> Decoded:
        """Await `decode()` for at most `timeout_ns`. Raises Busy, TooLate, and whatever it raises."""
        if self._waiting >= self._bound:
            raise Busy("as many bodies wait to be decoded as the queue holds")
        self._waiting += 1
        try:
            async with asyncio.timeout(None if timeout_ns is None else timeout_ns / 1e9):
                return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, decode)
        except TimeoutError:
            raise TooLate from None
        finally:
            self._waiting -= 1

    def _run(self, decode: Callable[[], Decoded]) -> Decoded:
        self._began = now()
        try:
            return decode()
        finally:
            self._began = None
