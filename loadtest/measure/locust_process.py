"""The load generator as a child process: Locust on its own cores, started, waited for, stopped."""

import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import msgspec

from loadtest import samples
from loadtest.generator import payload, schedule
from loadtest.generator.payload import Load
from loadtest.measure.server_process import ServerProcess
from loadtest.results import faults, latency
from medserve import process, store
from medserve.errors import BadInput, CannotRun
from medserve.spec import MOST_SECONDS, LoadProfile

LOCUSTFILE = Path(__file__).parents[1] / "generator" / "locustfile.py"
START_SECONDS = 60.0
"""More than Locust takes to start on a slow machine."""
WRITE_SECONDS = 120.0
"""More than it takes to compute and write the record of ten million requests."""
STOP_SECONDS = 30.0
"""Time for the record of what was sent so far, when Locust is stopped early."""
LOOK_SECONDS = 0.2
"""Pause between two checks of the children; the parent sleeps meanwhile."""
ROOFLINE = LoadProfile(name="roofline", mode="closed-loop", users=8, seconds=0.1, warmup_seconds=0.1)


def generate(
    load: Load,
    log: Path,
    why_dead: Callable[[], str | None] = lambda: None,
    processes: int = 1,
    look: Callable[[int], None] = lambda _: None,
) -> None:
    """Run Locust to the end of its plan, sleeping meanwhile. Raises CannotRun with the reason when it does not finish.

    `why_dead` gives the reason why the server ended, or null while it runs; then Locust is stopped, and its record is
    kept. Several `processes` divide the plan and write one record. `look` is called with the process id of Locust, of
    the master if there are several, about every LOOK_SECONDS. Raises BadInput for a plan that cannot be followed.
    """
    payload.check(load)
    if load.profile.mode == "open-loop":
        schedule.arrivals(load.profile, load.seed)
    if load.audit is not None and processes > 1:
        raise BadInput(f"an audit needs one user in one process, not {processes}; remove 'audit'")
    plan = log.with_name("load.json")
    store.write_json(plan, load)
    profile = load.profile
    users = str(profile.users if profile.mode == "closed-loop" else max(profile.users, processes))
    words = ["-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--host", load.url]
    words += ["--users", users, "--spawn-rate", users, "--only-summary"]
    words += ["--loglevel", "WARNING", "--exit-code-on-error", "0"]
    if processes > 1:
        here, port = "127.0.0.1", str(free_ports(1)[0])
        words += ["--processes", str(processes), "--expect-workers-max-wait", f"{START_SECONDS:.0f}"]
        words += ["--master-bind-host", here, "--master-bind-port", port, "--master-host", here, "--master-port", port]
    # The last answers may take one timeout, an audit another one. A trace ends with the profile's seconds.
    measuring = profile.warmup_seconds + max(profile.seconds, MOST_SECONDS)
    longest = START_SECONDS + measuring + 2 * load.timeout_seconds + WRITE_SECONDS
    deadline = time.monotonic() + longest
    with log.open("wb") as output:
        child = process.start(words, stdout=output, stderr=output, env={"MEDSERVE_LOAD": str(plan)})
    try:
        while child.poll() is None:
            if reason := why_dead():
                raise CannotRun(reason)
            look(child.pid)
            if time.monotonic() > deadline:
                raise CannotRun("the load generator did not end with its plan")
            time.sleep(LOOK_SECONDS)
    finally:
        code = process.stop(child, STOP_SECONDS)
    if reason := why_dead():
        raise CannotRun(reason)
    if code != 0:
        raise CannotRun(f"the load generator ended: {process.describe_exit(code)}: {_last_error(log)}")


def roofline(
    server: ServerProcess,
    shape: tuple[int, int, int],
    cpus: tuple[int, ...],
    out: Path,
    batch: int = 1,
    processes: int = 1,
) -> float:
    """Requests per second that the load generator on `cpus` and a server reach together, with back-to-back users.

    The record is written to `out`. Raises CannotRun when no request succeeds.
    """
    profile = msgspec.structs.replace(ROOFLINE, batch=batch)
    load = Load(url=server.url, model=server.model, profile=profile, shape=shape, out=str(out), cpus=cpus)
    generate(load, server.log.with_name("locust.log"), server.why_dead, processes)
    rows = latency.after_warmup(samples.read(out))
    succeeded = int(latency.succeeded(rows).sum())
    if not succeeded:
        raise CannotRun(f"roofline: {faults.failures(rows) or 'no request was sent'}")
    return succeeded / latency.duration_seconds(rows)


def free_ports(count: int) -> list[int]:
    """Free ports of 127.0.0.1, bound together so that they differ."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [listener.getsockname()[1] for listener in listeners]


def _last_error(log: Path) -> str:
    """The line of the log that says why; Locust prints its statistics after it."""
    errors = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("error: ")]
    return errors[-1].removeprefix("error: ") if errors else process.last_line(log)
