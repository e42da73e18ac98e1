"""Runs a stage in a process of its own: reads its events, and returns its output or why it failed."""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from subprocess import PIPE, TimeoutExpired
from tempfile import NamedTemporaryFile

import msgspec

from medserve import errors, process
from medserve.errors import BadInput, CannotRun, Ended
from medserve.progress import Progressed


def run(
    words: Iterable[str],
    log: Path,
    *,
    seconds: float = math.inf,
    env: Mapping[str, str] | None = None,
    python: str | None = None,
    show: Callable[[Progressed], None] = lambda _event: None,
) -> tuple[int, bytes, str]:
    """Run `python WORDS` to its end, asleep but for its events; its standard error goes to the file `log`.

    Returns the exit code, what it printed beside events, and the reason for an exit code other than 0. A stage that
    runs for longer than `seconds` is ended. `python` is that of its framework, by default this one. Raises CannotRun
    where there is none.
    """
    if python is not None and not Path(python).is_file():
        raise CannotRun(f"its environment is not made: there is no {python}")
    printed, reason = [], ""
    with log.open("wb") as file:
        child = process.start(words, python=python, stdout=PIPE, stderr=file, env={**(env or {}), errors.EVENTS: "1"})
        try:
            for line in process.output(child, seconds):
                event = _event(line)
                if isinstance(event, Progressed):
                    show(event)
                elif isinstance(event, Ended):
                    reason = event.reason
                else:
                    printed.append(line)
        except TimeoutExpired:
            reason = f"ended after {seconds / 3600:g} h, the time limit; raise 'job_hours' in the study"
        finally:
            code = process.stop(child)
            assert child.stdout is not None
            child.stdout.close()
    if code and not reason:
        reason = f"{process.last_line(log)} ({process.describe_exit(code)})"
    return code, b"".join(printed), reason


def ask(words: Iterable[str], python: str | None = None) -> bytes:
    """Run `python WORDS` and return its standard output. Raises BadInput or CannotRun with the reason of a failure."""
    with NamedTemporaryFile() as log:
        code, printed, reason = run(words, Path(log.name), python=python)
    if code:
        raise BadInput(reason) if code == 2 else CannotRun(reason)
    return printed


def _event(line: bytes) -> Progressed | Ended | None:
    try:
        return msgspec.json.decode(line, type=Progressed | Ended)
    except msgspec.MsgspecError:
        return None
