"""How a server process bears a hostile client: its memory, its event loop, its health page, and its end by SIGTERM."""

import http.client
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import psutil

from loadtest.benchmark.hostile import ATTACKS, Attack, Client
from medserve import machine, process
from medserve.errors import EVENTS, CannotRun

SAMPLE_SECONDS = 0.005
ASK_SECONDS = 0.05
"""Pause between two questions for the health of the server."""
EXIT_SECONDS = 60.0
"""A process that has not ended so long after SIGTERM is killed."""
HEALTH = ("/v2/health/live", "/v2/health/ready")
WRITE_EMPTY_ARTIFACT = (
    "import sys; from pathlib import Path; from medserve.empty import empty_artifact; "
    "empty_artifact(Path(sys.argv[1]), int(sys.argv[2]))"
)


class ServerMonitor:
    """Samples the memory and CPU time of process `pid` and asks for its health on a new connection, again and again.

    `longest_loop_seconds` is the largest CPU time that the thread of the event loop used while a question for health
    waited: unlike `longest_ms` it does not depend on what else the machine does.
    """

    def __init__(self, pid: int, address: tuple[str, int]) -> None:
        self._process = psutil.Process(pid)
        self._address = address
        self._ended = threading.Event()
        self._asking = threading.Event()
        self._threads = [threading.Thread(target=self._sample), threading.Thread(target=self._ask)]
        self.start_bytes = self.peak_bytes = self._process.memory_info().rss
        self._start_cpu = self.cpu_seconds()
        self.answers = 0
        self.failures: list[str] = []
        self.longest_ms = self.longest_loop_seconds = 0.0

    def __enter__(self) -> "ServerMonitor":
        self._asking.set()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    @property
    def growth(self) -> int:
        """Bytes by which the resident memory grew at most."""
        return self.peak_bytes - self.start_bytes

    @property
    def used_seconds(self) -> float:
        """CPU seconds of all threads since the start."""
        return self.cpu_seconds() - self._start_cpu

    def cpu_seconds(self) -> float:
        """CPU seconds of all threads; those of a process that ended, until its parent has collected it."""
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def stop_asking(self) -> None:
        """From here on the server may refuse connections. Returns when no question is under way."""
        self._asking.clear()
        self._threads[1].join()

    def wait_for_exit(self, seconds: float = EXIT_SECONDS) -> bool:
        """Whether the process ends within `seconds`. It stays a zombie, whose CPU time can be read."""
        end = time.monotonic() + seconds
        while self._process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > end:
                return False
            time.sleep(0.01)
        return True

    def _sample(self) -> None:
        with suppress(psutil.Error):
            while not self._ended.wait(SAMPLE_SECONDS):
                self.peak_bytes = max(self.peak_bytes, self._process.memory_info().rss)

    def _ask(self) -> None:
        while self._asking.is_set() and not self._ended.wait(ASK_SECONDS):
            started, used = time.monotonic(), self._loop_seconds()
            try:
                self._ask_once()
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
            else:
                self.answers += 1
            self.longest_ms = max(self.longest_ms, (time.monotonic() - started) * 1e3)
            self.longest_loop_seconds = max(self.longest_loop_seconds, self._loop_seconds() - used)

    def _ask_once(self) -> None:
        connection = http.client.HTTPConnection(*self._address, timeout=EXIT_SECONDS)
        try:
            for path in HEALTH:
                connection.request("GET", path)
                answer = connection.getresponse()
                answer.read()
                if answer.status != http.client.OK:
                    self.failures.append(f"{path}: {answer.status}")
        finally:
            connection.close()

    def _loop_seconds(self) -> float:
        with suppress(psutil.Error):
            for thread in self._process.threads():
                # The main thread has the number of its process.
                if thread.id == self._process.pid:
                    return float(thread.user_time + thread.system_time)
        return 0.0


class Endured(msgspec.Struct, frozen=True):
    """One attack on one server. `live_ms` is the longest time until the health pages were read."""

    attack: str
    server: str
    sent_bytes: int
    growth_bytes: int
    live_ms: float
    live_answers: int
    live_failures: int
    cpu_seconds: float
    exit_seconds: float | None


def measure(sources: Iterable[Path], names: Iterable[str]) -> Iterator[Endured]:
    """Attack a fresh server of each source tree by each attack. Raises CannotRun when a server does not start."""
    folders = list(sources)
    for name in names:
        for source in folders:
            yield _endure(name, source)


def markdown(rows: Iterable[Endured]) -> Iterator[str]:
    """The lines of a table, one per attack and server."""
    yield (
        "| attack | server | sent, MB | memory grew by, MB | health answered within, ms | not answered | CPU, s "
        "| SIGTERM to exit, s |"
    )
    yield "|---|---|---:|---:|---:|---:|---:|---:|"
    for row in rows:
        ended = f"above {EXIT_SECONDS:g}" if row.exit_seconds is None else f"{row.exit_seconds:.1f}"
        cells = (
            ATTACKS[row.attack].title,
            row.server,
            f"{row.sent_bytes / 2**20:,.1f}",
            f"{row.growth_bytes / 2**20:,.0f}",
            f"{row.live_ms:,.0f}",
            f"{row.live_failures} of {row.live_failures + row.live_answers}",
            f"{row.cpu_seconds:.1f}",
            ended,
        )
        yield f"| {' | '.join(cells)} |"


def _endure(name: str, source: Path) -> Endured:
    attack = ATTACKS[name]
    with _serving(source, attack) as (child, address, model), Client(address, model) as client:
        _warm_up(address, model)
        with ServerMonitor(child.pid, address) as monitor:
            # The connections stay open: the server ends under attack.
            for _ in attack.run(client):
                pass
            monitor.stop_asking()
            used = monitor.used_seconds
            told = time.monotonic()
            os.kill(child.pid, signal.SIGTERM)
            exited = monitor.wait_for_exit()
            exit_seconds = time.monotonic() - told
        if not exited:
            child.kill()
        return Endured(
            attack=name,
            server=source.name,
            sent_bytes=client.sent,
            growth_bytes=monitor.growth,
            live_ms=monitor.longest_ms,
            live_answers=monitor.answers,
            live_failures=len(monitor.failures),
            cpu_seconds=used,
            exit_seconds=exit_seconds if exited else None,
        )


def _warm_up(address: tuple[str, int], model: str) -> None:
    """One bad file: what the first one allocates is no growth."""
    connection = http.client.HTTPConnection(*address, timeout=EXIT_SECONDS)
    connection.request("POST", f"/v2/models/{model}/classify", b"no image")
    connection.getresponse().read()
    connection.close()


@contextmanager
def _serving(source: Path, attack: Attack) -> Iterator[tuple["subprocess.Popen[bytes]", tuple[str, int], str]]:
    """The server of a source tree with an artifact that the same tree writes: manifests differ between versions."""
    # Without the first, Python takes the modules of the current folder.
    env = {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(source.resolve()), EVENTS: "1"}
    cpu = str(machine.divide_cpus(1)[0][0])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "empty"
        folder.mkdir()
        if process.start(["-c", WRITE_EMPTY_ARTIFACT, str(folder), str(attack.size)], env=env).wait():
            raise CannotRun(f"{source}: no artifact could be written; expected a source tree of medserve")
        words = ["-m", "serve", str(folder), "--port", "0", "--cpus", cpu, *attack.options]
        with (Path(scratch) / "server.log").open("wb") as log:
            child = process.start(words, stdout=subprocess.PIPE, stderr=log, env=env)
        assert child.stdout is not None
        try:
            event = json.loads(child.stdout.readline() or b"{}")
            if event.get("event") != "ready":
                raise CannotRun(f"{source}: {event.get('reason') or process.last_line(Path(log.name))}")
            parts = urlsplit(event["url"])
            assert parts.hostname is not None
            assert parts.port is not None
            yield child, (parts.hostname, parts.port), event["model"]
        finally:
            process.stop(child)
            child.stdout.close()
