"""What a hostile client does to a server process: its memory, its event loop, its health pages, its end by SIGTERM."""

import http.client
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil

from loadtest.benchmark.bench import columns
from loadtest.benchmark.hostile import ATTACKS, Attack, Client
from loadtest.generator.payload import ask, infer_url
from medserve import machine, process, wire
from medserve.errors import EVENTS, BadInput, CannotRun
from medserve.numbers import number

SAMPLE_SECONDS = 0.005
ASK_SECONDS = 0.05
"""Pause between two questions for the health of the server."""
IDLE_SECONDS, IDLE_SHARE = 0.3, 0.2
EXIT_SECONDS = 60.0
"""A process that has not ended so long after SIGTERM is killed."""
HEALTH = ("/v2/health/live", "/v2/health/ready")
COLUMNS = columns(
    ("attack", "server"),
    ("sent, MB", "memory grew by, MB", "health answered within, ms", "not answered", "CPU, s", "SIGTERM to exit, s"),
)
WRITE_EMPTY_ARTIFACT = (
    "import sys; from pathlib import Path; from medserve.empty import empty_artifact; "
    "empty_artifact(Path(sys.argv[1]), int(sys.argv[2]))"
)


class ServerMonitor:
    """Samples the memory of process `pid`, and asks for its health on a new connection, again and again.

    `longest_loop_seconds` is the largest CPU time that the thread of the event loop used while a question for health
    waited: unlike `longest_ms` it does not depend on what else the machine does. `sigterm_at` and `exited_at` are
    monotonic seconds.
    """

    def __init__(self, pid: int, url: str) -> None:
        self._process = psutil.Process(pid)
        self._url = url
        self._closed, self._stopped_asking = threading.Event(), threading.Event()
        self._sampling = threading.Thread(target=self._sample)
        self._asking = threading.Thread(target=self._ask)
        self._start_bytes = self._peak_bytes = self._resident_bytes()
        self.answers = 0
        self.failures: list[str] = []
        self.longest_ms = self.longest_loop_seconds = self.sigterm_at = self.cpu_at_sigterm = 0.0
        self.exited_at: float | None = None

    def __enter__(self) -> "ServerMonitor":
        self._sampling.start()
        self._asking.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self.stop_asking()
        self._sampling.join()

    @property
    def growth(self) -> int:
        """Bytes by which the resident memory grew at most."""
        return self._peak_bytes - self._start_bytes

    def cpu_seconds(self) -> float:
        """CPU seconds of all threads; also of a process that has ended, until its parent has collected it."""
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def wait_until_idle(self) -> None:
        """Return when what was sent is worked off: health is answered and takes all the CPU time; or EXIT_SECONDS."""
        end, before = time.monotonic() + EXIT_SECONDS, -1.0
        while (used := self.cpu_seconds()) - before > IDLE_SHARE * IDLE_SECONDS and time.monotonic() < end:
            before, answers = used, self.answers + len(self.failures)
            while time.monotonic() < end and self.answers + len(self.failures) < answers + 2 * len(HEALTH):
                time.sleep(ASK_SECONDS)
            time.sleep(IDLE_SECONDS)

    def stop_asking(self) -> None:
        """Return when no question is under way: from here on the server may refuse connections."""
        self._stopped_asking.set()
        self._asking.join()

    def terminate(self) -> None:
        """Send SIGTERM, once."""
        if not self.sigterm_at:
            self.sigterm_at, self.cpu_at_sigterm = time.monotonic(), self.cpu_seconds()
            self._process.terminate()

    def wait_for_exit(self) -> bool:
        """Whether the process ends within EXIT_SECONDS."""
        self._sampling.join(EXIT_SECONDS)
        return self.exited_at is not None

    def _resident_bytes(self) -> int:
        return int(self._process.memory_info().rss)

    def _sample(self) -> None:
        while not self._closed.wait(SAMPLE_SECONDS):
            if self._process.status() == psutil.STATUS_ZOMBIE:
                self.exited_at = time.monotonic()
                return
            self._peak_bytes = max(self._peak_bytes, self._resident_bytes())

    def _ask(self) -> None:
        while not self._stopped_asking.wait(ASK_SECONDS):
            started, used = time.monotonic(), self._loop_seconds()
            for path in HEALTH:
                try:
                    status, _ = ask("GET", self._url + path, seconds=EXIT_SECONDS)
                except (OSError, http.client.HTTPException) as error:
                    self.failures.append(f"{path}: {error!r}")
                    continue
                if status == http.client.OK:
                    self.answers += 1
                else:
                    self.failures.append(f"{path}: {status}")
            self.longest_ms = max(self.longest_ms, (time.monotonic() - started) * 1e3)
            self.longest_loop_seconds = max(self.longest_loop_seconds, self._loop_seconds() - used)

    def _loop_seconds(self) -> float:
        for thread in self._process.threads():
            # The main thread has the number of its process.
            if thread.id == self._process.pid:
                return float(thread.user_time + thread.system_time)
        return 0.0


class Resilience(msgspec.Struct, frozen=True):
    """One attack on one server, run to its end, and begun again, with SIGTERM in its middle.

    `live_ms` is the longest time until both health pages were read, `loop_seconds` the largest CPU time of the event
    loop meanwhile. `exit_seconds` is null where the process had to be killed; `exit_cpu_seconds` are those after
    SIGTERM.
    """

    attack: str
    server: str
    sent_bytes: int
    growth_bytes: int
    live_ms: float
    loop_seconds: float
    live_answers: int
    live_failures: tuple[str, ...]
    cpu_seconds: float
    exit_seconds: float | None
    exit_cpu_seconds: float

    def cells(self) -> tuple[str, ...]:
        """The cells of a row of COLUMNS."""
        return (
            ATTACKS[self.attack].title,
            self.server,
            *map(number, (self.sent_bytes / 2**20, self.growth_bytes / 2**20, self.live_ms)),
            f"{len(self.live_failures)} of {len(self.live_failures) + self.live_answers}",
            number(self.cpu_seconds),
            f"above {EXIT_SECONDS:g}" if self.exit_seconds is None else number(self.exit_seconds),
        )


def attack(name: str, pid: int, url: str, model: str, server: str = "") -> Resilience:
    """Attack the server of process `pid`, a child of this process; it has ended when this returns.

    Raises CannotRun when it does not answer a good request before or after the attack.
    """
    kind = ATTACKS[name]
    good = wire.encode_request(np.zeros((1, kind.size, kind.size, 3), np.uint8))

    def check_good() -> None:
        end = time.monotonic() + EXIT_SECONDS
        # What fills the queue may take its time.
        while (status := ask("POST", infer_url(url, model), *good, EXIT_SECONDS)[0]) != http.client.OK:
            if status != http.client.SERVICE_UNAVAILABLE or time.monotonic() > end:
                raise CannotRun(f"{name}: a good request was answered by {status}")

    check_good()
    with ServerMonitor(pid, url) as monitor:
        start = monitor.cpu_seconds()
        with Client(url, model) as client:
            steps = sum(1 for _ in kind.run(client))
            monitor.wait_until_idle()
        used = monitor.cpu_seconds() - start
        check_good()
        monitor.stop_asking()
        with Client(url, model) as again:
            # A server that ends takes no connections any more.
            with suppress(OSError):
                for step, _ in enumerate(kind.run(again)):
                    if step == steps // 2:
                        monitor.terminate()
            monitor.terminate()
            if not monitor.wait_for_exit():
                os.kill(pid, signal.SIGKILL)
            exit_cpu = monitor.cpu_seconds() - monitor.cpu_at_sigterm
    return Resilience(
        attack=name,
        server=server,
        sent_bytes=client.sent,
        growth_bytes=monitor.growth,
        live_ms=monitor.longest_ms,
        loop_seconds=monitor.longest_loop_seconds,
        live_answers=monitor.answers,
        live_failures=tuple(monitor.failures),
        cpu_seconds=used,
        exit_seconds=None if monitor.exited_at is None else monitor.exited_at - monitor.sigterm_at,
        exit_cpu_seconds=exit_cpu,
    )


def measure(sources: Iterable[Path], names: Iterable[str]) -> Iterator[Resilience]:
    """Attack a fresh server of each source tree by each attack.

    Raises BadInput for a folder that is no source tree, and CannotRun when a server does not start.
    """
    folders = list(sources)
    for source in folders:
        # Without it, Python would take the installed package.
        if not (source / "serve" / "__main__.py").is_file():
            raise BadInput(f"{source}: no serve/__main__.py; expected a source tree of medserve")
    for name in names:
        for source in folders:
            with _serving(source, ATTACKS[name]) as (pid, url, model):
                yield attack(name, pid, url, model, source.resolve().name)


@contextmanager
def _serving(source: Path, kind: Attack) -> Iterator[tuple[int, str, str]]:
    """Process, URL and model of a source tree's server. The same tree writes its artifact: manifests change."""
    # Without the first, Python takes the modules of the current folder.
    env = {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(source.resolve()), EVENTS: "1"}
    cpu = str(machine.divide_cpus(1)[0][0])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "empty"
        folder.mkdir()
        if process.start(["-c", WRITE_EMPTY_ARTIFACT, str(folder), str(kind.size)], env=env).wait():
            raise CannotRun(f"{source}: its medserve.empty writes no artifact")
        words = ["-m", "serve", str(folder), "--port", "0", "--cpus", cpu, *kind.options]
        with (Path(scratch) / "server.log").open("wb") as log:
            child = process.start(words, stdout=subprocess.PIPE, stderr=log, env=env)
        assert child.stdout is not None
        try:
            event = msgspec.json.decode(child.stdout.readline() or b"{}", type=dict[str, Any])
            if event.get("event") != "ready":
                raise CannotRun(f"{source}: {event.get('reason') or process.last_line(Path(log.name))}")
            yield child.pid, event["url"], event["model"]
        finally:
            process.stop(child)
            child.stdout.close()
