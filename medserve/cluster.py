"""Dask distributed, which carries units to workers on other machines: the one file that knows it.

What of it would harm a measurement is off or not used. A worker has no nanny, which sets variables of threads and
memory for all below it, no profiler, no monitors and no page. A worker has one unit at a time, sent to its own address:
so the scheduler can neither pile units up on one nor give them to another (distributed issues 5098, 6467, 9108, 9129).
"""

import asyncio
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import dask
from distributed import Client, Future, Scheduler, Worker, wait
from distributed.comm.core import CommClosedError

from medserve import errors, process, units
from medserve.errors import BadInput, CannotRun
from medserve.units import Facts, Lost, Outcome, Unit

Value = TypeVar("Value")

CONNECT_SECONDS, AGAIN_SECONDS = 10.0, 2.0
UNREACHED = (OSError, ValueError, RuntimeError, TypeError)
"""What Dask raises where there is no scheduler, or where certificates are missing or wrong."""
QUIET = {
    "distributed.scheduler.work-stealing": False,
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.interval": "1h",
    "distributed.admin.system-monitor.disk": False,
    "distributed.admin.system-monitor.gil.enabled": False,
    "distributed.admin.tick.interval": "1h",
    "distributed.admin.tick.cycle": "1h",
    "distributed.worker.http.routes": [],
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
}
"""What a worker, or a scheduler on the same machine, must not do beside a measurement."""


class MedserveWorker(Worker):
    """A worker that knows its `facts`; others are not taken."""

    facts: Facts


def check_address(address: str) -> str:
    """The address of a scheduler with its scheme. Raises BadInput for one that everybody on the network could use."""
    full = address if "://" in address else f"tcp://{address}"
    found = urlsplit(full)
    if found.scheme not in ("tcp", "tls") or not found.hostname or not found.port:
        raise BadInput(f"scheduler {address!r}: expected HOST:PORT, tcp://HOST:PORT or tls://HOST:PORT")
    if found.scheme == "tcp" and not _is_loopback(found.hostname):
        raise BadInput(
            f"scheduler {address}: its port runs the code of every client; give tls://{found.netloc} with"
            " certificates, or 127.0.0.1 with a tunnel; see SECURITY.md"
        )
    return full


def _brief(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Cluster:
    """The workers at a scheduler: submit a unit to one of them, wait, fetch what it made."""

    def __init__(self, address: str) -> None:
        self._address = check_address(address)
        try:
            self._client = Client(self._address, timeout=CONNECT_SECONDS, name="medserve")
        except UNREACHED as error:
            raise BadInput(f"no scheduler at {address}: {_brief(error)}; start one: medserve scheduler") from None
        self._units: dict[str, tuple[str, Future[Outcome]]] = {}
        self._facts: dict[str, Facts | None] = {}
        self._count = 0

    def close(self) -> None:
        """Leave the scheduler. Workers end what they have begun."""
        self._client.close(timeout=CONNECT_SECONDS)

    def workers(self) -> dict[str, Facts | None]:
        """What every worker says of itself, by its address; null of one that `medserve worker` did not start.

        Raises CannotRun when the scheduler is gone.
        """
        found = self._reached(lambda: self._client.scheduler_info(n_workers=-1)["workers"])
        for address in [address for address in found if address not in self._facts]:
            try:
                self._facts[address] = self.ask(address, _facts)
            except Lost:
                continue
            except Exception:  # of another version of anything
                self._facts[address] = None
        return {address: self._facts[address] for address in found if address in self._facts}

    def ask(self, address: str, function: Callable[..., Value], *words: object) -> Value:
        """What a short function returns on a worker.

        Raises Lost, CannotRun when the scheduler is gone, and whatever the function raises.
        """
        try:
            found: Value = self._client.run(function, *words, workers=[address])[address]
        except (CommClosedError, KeyError, CancelledError, TimeoutError) as error:
            raise Lost(address) from error
        except OSError:
            # The scheduler's, which does not answer, or the function's own.
            self._reached(lambda: None)
            raise
        return found

    def submit(self, address: str, name: str, unit: Unit, home: str) -> None:
        """Send a unit to a worker; `name` it is called when it ends."""
        self._count += 1
        future = self._client.submit(
            units.perform, unit, home, key=f"{name}-{os.getpid()}-{self._count}-{time.time_ns()}",
            workers=[address], allow_other_workers=False, pure=False,
        )  # fmt: skip
        self._units[name] = address, future

    def wait(self, seconds: float) -> Iterator[tuple[str, Outcome | Exception]]:
        """The units that have ended within so many seconds, with what they made, Lost, or what went wrong."""
        if self._units:
            with suppress(TimeoutError, CancelledError):
                wait([future for _, future in self._units.values()], timeout=seconds, return_when="FIRST_COMPLETED")
        else:
            time.sleep(seconds)
        known = self.workers()
        for name, (address, future) in list(self._units.items()):
            if future.status == "pending" and address in known:
                continue
            del self._units[name]
            yield name, _result(future)

    def _reached(self, ask: Callable[[], Value]) -> Value:
        try:
            if self._client.status == "running":
                return ask()
        except (OSError, TimeoutError, CancelledError):
            pass
        raise CannotRun(
            f"the scheduler at {self._address} is gone; what came back is kept: when it is there again, the same "
            "command goes on"
        )


def _result(future: Future[Outcome]) -> Outcome | Exception:
    try:
        if future.status in ("finished", "error"):
            found: Outcome = future.result(timeout=600)
            return found
    except (CommClosedError, CancelledError, TimeoutError):
        pass
    except Exception as error:
        return error
    finally:
        future.release()
    return Lost("its worker is gone")


def _facts(dask_worker: Any) -> Facts | None:
    found: Facts | None = getattr(dask_worker, "facts", None)
    return found


def keep_working(address: str, kind: str, folder: Path, port: int) -> None:
    """Have a worker at a scheduler, and another one when it ends, until this process is interrupted."""
    full = check_address(address)
    errors.check_name("machine", kind)
    folder.mkdir(parents=True, exist_ok=True)
    print(f"worker of the kind {kind} for the scheduler {full}, in {folder}; Ctrl-C ends it", file=sys.stderr)
    while True:
        child = process.start(["-m", "medserve.cluster", full, kind, str(folder), str(port)])
        try:
            child.wait()
        finally:
            process.stop(child)
        time.sleep(AGAIN_SECONDS)


def schedule(address: str) -> None:
    """Be the scheduler at an address, until interrupted."""
    full = check_address(address)
    _be_quiet()

    async def serve() -> None:
        async with Scheduler(host=full, dashboard=False) as scheduler:
            print(f"scheduler at {scheduler.address}; Ctrl-C ends it", file=sys.stderr)
            await scheduler.finished()

    try:
        asyncio.run(serve())
    except UNREACHED as error:
        raise CannotRun(f"no scheduler can be at {address}: {_brief(error)}") from None


def _be_quiet() -> None:
    dask.config.set(QUIET)
    logging.getLogger("distributed").setLevel(logging.WARNING)


async def _work(address: str, kind: str, folder: Path, port: int) -> None:
    host = "127.0.0.1" if _is_loopback(urlsplit(address).hostname or "") else None
    name = f"{kind}-{platform.node()}-{os.getpid()}"
    worker = MedserveWorker(
        address,
        name=name,
        host=host,
        port=port,
        nthreads=1,
        memory_limit=0,
        dashboard=False,
        local_directory=str(folder / "dask"),
    )
    worker.facts = units.facts(kind, folder)
    async with worker:
        await worker.finished()


def _main() -> None:
    address, kind, folder, port = sys.argv[1:]
    _be_quiet()
    try:
        asyncio.run(_work(address, kind, Path(folder), int(port)))
    except UNREACHED as error:
        raise CannotRun(f"no scheduler at {address}: {_brief(error)}; trying again") from None


if __name__ == "__main__":
    errors.main(_main)
