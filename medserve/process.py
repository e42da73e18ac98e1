"""Child processes that never outlive their parent, and stop when they are told to."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO

PARENT = "MEDSERVE_PARENT"
_PR_SET_PDEATHSIG = 1


def start(
    arguments: Iterable[str],
    *,
    stdin: int = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    env: Mapping[str, str] | None = None,
) -> "subprocess.Popen[bytes]":
    """Start `python -m ...` as a child that ends when this process ends, however it ends."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env={**os.environ, **(env or {}), PARENT: str(os.getpid())},
    )


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


def stop(process: "subprocess.Popen[bytes]", patience: float = 10.0) -> int:
    """End a child that this process started: SIGTERM, `patience` seconds, SIGKILL. Returns its exit code."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


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
    """The last non-empty line of a log, for a reason in a row."""
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:500] if lines else ""


def interruptible() -> None:
    """Let SIGTERM unwind like Ctrl-C, so that `finally` blocks stop children and remove partial folders."""
    # Not by raising SIGINT, which a shell script's background processes ignore.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGKILL)
