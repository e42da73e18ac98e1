"""A server as a child process: started, waited for, observed, stopped; and why it ended, if it did."""

import http.client
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
from numpy.typing import NDArray

from loadtest.generator.payload import ask, infer_url
from loadtest.measure.monitor import counter
from medserve import machine, process, wire
from medserve.empty import empty_artifact
from medserve.errors import EVENTS, CannotRun
from medserve.spec import Deployment
from medserve.timing import now

READY_SECONDS = 300.0
"""The longest time in which a server may load and compile."""


class ServerProcess:
    """`python -m serve` of one deployment, on `cpus`. What it prints goes to server.out and server.log in `folder`."""

    pid: int
    url: str
    model: str

    def __init__(self, artifact: Path, deployment: Deployment, cpus: tuple[int, ...], folder: Path) -> None:
        self.log = folder / "server.log"
        self._out = folder / "server.out"
        words = ["-m", "serve", str(artifact), "--deployment", msgspec.json.encode(deployment).decode(), "--port", "0"]
        words += ["--cpus", ",".join(map(str, cpus))] if cpus else []
        self._started = now()
        with self._out.open("wb") as out, self.log.open("wb") as log:
            env = {EVENTS: "1", **machine.thread_environment(deployment.threads)}
            self._child = process.start(words, stdout=out, stderr=log, env=env)
        self.pid = self._child.pid

    def wait_ready(self, seconds: float = READY_SECONDS) -> None:
        """Return when the server is ready. Raises CannotRun with the reason when it is not within `seconds`."""
        deadline = time.monotonic() + seconds
        while (ready := self._event("ready")) is None:
            if reason := self.why_dead():
                raise CannotRun(reason)
            if time.monotonic() > deadline:
                raise CannotRun(f"the server was not ready within {seconds:g} s: {process.last_line(self.log)}")
            time.sleep(0.02)
        self.url, self.model = ready["url"], ready["model"]
        self._facts = ready["process"] | {"ready_seconds": self._since_start(now())}
        self._facts["import_seconds"] = self._since_start(self._facts.pop("imported_ns"))

    def answer_first(self, images: NDArray[np.uint8]) -> None:
        """Send the first request, uint8 (1, H, W, C), and record the seconds from the server's start to its answer."""
        # The load that follows reports whatever is wrong with the server.
        with suppress(OSError, http.client.HTTPException):
            status, _ = ask("POST", infer_url(self.url, self.model), *wire.encode_request(images))
            if status == http.client.OK:
                self._facts["first_answer_seconds"] = self._since_start(now())

    def _since_start(self, stamp: int) -> float:
        """Seconds; all processes of this machine share the clock."""
        return round((stamp - self._started) / 1e9, 3)

    def why_dead(self) -> str | None:
        """Why the server ended, in one line; null while it runs."""
        code = self._child.poll()
        if code is None:
            return None
        if (error := self._event("error")) is not None:
            return f"the server ended: {error['reason']}"
        last = process.last_line(self.log)
        return f"the server ended: {process.describe_exit(code)}" + (f": {last}" if last else "")

    def facts(self) -> dict[str, Any]:
        """What the server reported when it was ready, and what the system reports of it now."""
        return {**self._facts, **process_facts(self.pid)}

    def stop(self) -> None:
        """End it, if it still runs."""
        process.stop(self._child)

    def _event(self, kind: str) -> dict[str, Any] | None:
        for line in self._out.read_bytes().splitlines():
            try:
                event = msgspec.json.decode(line, type=dict[str, Any])
            except msgspec.DecodeError:  # an incomplete line, or one that a framework printed
                continue
            if event.get("event") == kind:
                return event
        return None


@contextmanager
def serving(
    deployment: Deployment, cpus: tuple[int, ...], folder: Path, artifact: Path | None = None, size: int = 28
) -> Iterator[ServerProcess]:
    """A ready server, ended with the block. Without an artifact its runtime is one that needs no model.

    It then takes images of `size` x `size` pixels. Raises CannotRun as `ServerProcess.wait_ready`.
    """
    folder.mkdir(exist_ok=True)
    server = ServerProcess(artifact or empty_artifact(folder, size), deployment, cpus, folder)
    try:
        server.wait_ready()
        yield server
    finally:
        server.stop()


def process_facts(pid: int, itself: bool = True) -> dict[str, Any]:
    """What the system reports of a running process with its children, or of these alone; empty when it is gone.

    It is less where the system reports less.
    """
    try:
        handle = psutil.Process(pid)
        facts: dict[str, Any] = {"pid": pid}
        if hasattr(handle, "cpu_affinity"):
            facts["affinity"] = handle.cpu_affinity()
        used: Counter[str] = Counter()
        for member in [handle] * itself + handle.children(recursive=True):
            with member.oneshot():
                times = member.cpu_times()
                used.update({"os_threads": member.num_threads()})
                used.update({"cpu_seconds": times.user + times.system, **machine.usage(member.pid)})
            status = Path(f"/proc/{member.pid}/status")
            if (peak := counter(status.read_text() if status.is_file() else "", "VmHWM")) is not None:
                used["peak_memory_bytes"] += peak * 1024
    except (psutil.Error, OSError):
        return {}
    return {**facts, **used}
