"""Child processes that never outlive their parent, and stop when they are told to.

Each child leads a process group of its own, so that what it leaves behind can be ended with it. Ctrl-C at a terminal
reaches the process in front alone, and that one stops its children.
"""

import ctypes
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

PARENT = "MEDSERVE_PARENT"
PYTHONS = "MEDSERVE_PYTHONS"
"""The Python of each framework and runtime that has one of its own, as JSON; all children know it."""
_HOME = str(Path(__file__).parents[1])
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_PIPE = 1 << 20
"""Bytes; a pipe holds no more, unless a privileged process enlarged it."""
_TAIL = 1 << 16
"""Bytes of the end of a log in which its last line is looked for."""
_LOOK_SECONDS = 0.2
"""Pause between two looks at a child where the system cannot wake its parent at its end."""
_SLEEP_SECONDS = 86400.0
"""Longest sleep where it can; a system call takes no more than 24 days."""
_CHILDREN: set["subprocess.Popen[bytes]"] = set()
"""Those that were started and not stopped."""


@contextmanager
def quiet() -> Iterator[None]:
    """Keep off the terminal what libraries write to standard error; it is written after all if they raise."""
    with TemporaryFile() as said:
        try:
            with _into(said, 2):
                yield
        except BaseException:
            said.seek(0)
            os.write(2, said.read())
            raise


def printed(call: Callable[[], object]) -> str:
    """What libraries write to standard output during a call."""
    with TemporaryFile() as said:
        with _into(said, 1):
            call()
        said.seek(0)
        return said.read().decode(errors="replace")


@contextmanager
def _into(file: IO[bytes], descriptor: int) -> Iterator[None]:
    """Write into a file what Python and C libraries, each with a buffer of its own, write to a descriptor."""

    def flush() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        ctypes.CDLL(None).fflush(None)

    flush()
    before = os.dup(descriptor)
    os.dup2(file.fileno(), descriptor)
    try:
        yield
    finally:
        flush()
        os.dup2(before, descriptor)
        os.close(before)


def use_pythons(pythons: Mapping[str, str]) -> None:
    """Run the jobs of these frameworks and runtimes by other Pythons, here and in all children from now on."""
    # Under the empty name the one of all others: a child of an environment has another sys.executable.
    os.environ[PYTHONS] = json.dumps({"": sys.executable} | dict(pythons) if pythons else {})


def python_of(name: str) -> str:
    """The Python that runs the jobs of a framework or runtime."""
    known: dict[str, str] = json.loads(os.environ.get(PYTHONS, "{}"))
    return known.get(name) or known.get("") or sys.executable


def start(
    arguments: Iterable[str],
    *,
    python: str | None = None,
    stdin: int = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    env: Mapping[str, str] | None = None,
) -> "subprocess.Popen[bytes]":
    """Start `python -m ...` as a child that ends when the thread that calls this ends, however it ends.

    `python` is an interpreter; by default this process's own.
    """
    env = dict(env or {})
    if python is not None and python != sys.executable:
        # It need not have this program installed.
        env["PYTHONPATH"] = os.pathsep.join([_HOME, *filter(None, [os.environ.get("PYTHONPATH")])])
    child = subprocess.Popen(
        [python or sys.executable, *arguments],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        process_group=0,
        env={**os.environ, **env, PARENT: str(os.getpid())},
    )
    _CHILDREN.add(child)
    return child


def die_with_parent() -> None:
    """Called first in every stage: ask the kernel to kill this process when its parent dies.

    Where the kernel has no parent-death signal a daemon thread looks once a second. Does nothing when a person's shell
    started the process.
    """
    parent = os.environ.pop(PARENT, None)
    if parent is None:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    else:
        threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()
    if os.getppid() != int(parent):
        os.kill(os.getpid(), signal.SIGKILL)


def adopt_orphans() -> None:
    """Become the parent of what this process's children leave behind, and be told by SIGTERM when its own parent ends.

    Does nothing where the kernel has neither.
    """
    os.environ.pop(PARENT, None)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def output(child: "subprocess.Popen[bytes]", seconds: float) -> Iterator[bytes]:
    """The lines that a child prints to its pipe until it ends; this process sleeps in between.

    The pipe may be held open by processes that the child leaves behind: those of its group are killed, and no others
    are waited for. Raises TimeoutExpired when the child runs for longer than `seconds`; it then still runs.
    """
    assert child.stdout is not None
    pipe, rest = child.stdout.fileno(), b""
    deadline = time.monotonic() + seconds
    os.set_blocking(pipe, False)
    with ExitStack() as opened:
        waiting = opened.enter_context(selectors.DefaultSelector())
        waiting.register(pipe, selectors.EVENT_READ)
        end = _end_of(child)
        if end is not None:
            opened.callback(os.close, end)
            waiting.register(end, selectors.EVENT_READ)
        pause = _LOOK_SECONDS if end is None else _SLEEP_SECONDS
        running = True
        while running:
            left = deadline - time.monotonic()
            ready = {key.fd for key, _ in waiting.select(min(left, pause))}
            running = end not in ready if end is not None else child.poll() is None
            if not running:
                _kill_group(child)
            elif left <= 0:
                raise subprocess.TimeoutExpired(child.args, seconds)
            if running and pipe not in ready:
                continue
            try:
                piece = os.read(pipe, _PIPE)
            except BlockingIOError:
                continue
            if not piece and running:
                # The child closed it. Its end is still to come.
                waiting.unregister(pipe)
            *lines, rest = (rest + piece).split(b"\n")
            yield from (line + b"\n" for line in lines)
    if rest:
        yield rest


def stop(process: "subprocess.Popen[bytes]", patience: float = 10.0) -> int:
    """End a child that this process started: SIGTERM, `patience` seconds, SIGKILL. Returns its exit code.

    What is left of its process group is killed.
    """
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
    code = process.wait()
    _kill_group(process)
    _CHILDREN.discard(process)
    return code


def stop_all() -> None:
    """End all children that this process started, whichever of its threads waits for them."""
    for child in tuple(_CHILDREN):
        stop(child)


def describe_exit(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = str(-code)
    return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def last_line(path: Path) -> str:
    """The last line of a log that has a letter, for a reason in a row."""
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - _TAIL))
        found = log.read().decode(errors="replace").splitlines()
    lines = [line.strip() for line in found if any(map(str.isalpha, line))]
    return lines[-1][:500] if lines else ""


def interruptible() -> None:
    """Let SIGTERM unwind like Ctrl-C, so that `finally` blocks stop children and remove partial folders."""
    # Not by raising SIGINT, which a shell script's background processes ignore.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _end_of(child: "subprocess.Popen[bytes]") -> int | None:
    """A descriptor that can be read when a child has ended; None where the system has no such thing."""
    try:
        return os.pidfd_open(child.pid)
    except (AttributeError, OSError):
        return None


def _kill_group(child: "subprocess.Popen[bytes]") -> None:
    # While a member is left, the system gives the group's number to no other; process numbers go round in a long cycle.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGKILL)
