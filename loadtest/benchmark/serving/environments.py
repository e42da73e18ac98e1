"""The environments of other servers, one for each, and the programs that run in them.

`python -m loadtest.benchmark.serving.environments PROGRAM...` becomes a program of another environment. It then ends
with its parent, although it does not import medserve.
"""

import json
import os
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from medserve import machine, process
from medserve.errors import CannotRun

APPLICATIONS = Path(__file__).parent / "applications"


def install(folder: Path, packages: Sequence[str]) -> Path:
    """The folder of the programs of an environment with `packages`, made where it is missing or has others.

    Raises CannotRun with pip's last line when they cannot be installed.
    """
    ready, wanted = folder / "packages.txt", "\n".join(packages)
    if not ready.is_file() or ready.read_text() != wanted:
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run([*pip, *packages], capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()]
            raise CannotRun(f"{folder.name} cannot be installed: {lines[-1]}")
        ready.write_text(wanted)
    return folder / "bin"


def versions(programs: Path) -> dict[str, str]:
    """Every package of an environment, and its version."""
    words = [str(programs / "python"), "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"]
    listed = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
    return {package["name"]: package["version"] for package in listed}


class Program:
    """A program and all its children on `cpus`."""

    def __init__(self, words: Sequence[str], cpus: tuple[int, ...], env: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as out:
            env = {"PYTHONPATH": str(APPLICATIONS), **env}
            self._child = _start(words, cpus, stdout=out, stderr=subprocess.STDOUT, env=env)
        self.pid = self._child.pid

    def wait_listening(self, port: int, seconds: float) -> None:
        """Return when something listens on the port. Raises CannotRun when nothing does, with the log's last line."""
        deadline = time.monotonic() + seconds
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
                return
            if self._child.poll() is not None or time.monotonic() > deadline:
                raise CannotRun(f"{self.log.stem} does not listen: {process.last_line(self.log)}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End it and its children."""
        family = resume(self.pid)
        process.stop(self._child)
        for one in psutil.wait_procs(family, timeout=5.0)[1]:
            with suppress(psutil.NoSuchProcess):
                one.kill()


def members(pid: int) -> list[psutil.Process]:
    """A process and all its children; none when it has ended."""
    try:
        parent = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return []
    return [parent, *parent.children(recursive=True)]


def suspend(pid: int) -> None:
    """Suspend a process and all its children, while others are measured."""
    for one in members(pid):
        one.suspend()


def resume(pid: int) -> list[psutil.Process]:
    """Resume a process and all its children, and return them."""
    found = members(pid)
    for one in found:
        one.resume()
    return found


def cpu_seconds(pid: int) -> float:
    """CPU seconds of a process and all its children."""
    return sum(sum(one.cpu_times()[:2]) for one in members(pid))


class InProcess:
    """The model alone in a process of an environment: the time of a prediction without a server."""

    def __init__(self, python: Path, model: Path, cpus: tuple[int, ...]) -> None:
        words = [str(python), str(APPLICATIONS / "onnx_model.py")]
        pipe = subprocess.PIPE
        self._child = _start(words, cpus, stdin=pipe, stdout=pipe, env={"MODEL": str(model)})

    def times(self, images: int, count: int) -> NDArray[np.int64]:
        """int64 nanoseconds of `count` predictions of so many images each."""
        return np.array(json.loads(self._ask(f"time {images} {count}")), np.int64)

    def scores(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The model's scores of one (H, W, C) image: float32 (classes,)."""
        return np.array(json.loads(self._ask(f"score {json.dumps(image.tolist())}")), np.float32)

    def stop(self) -> None:
        """End it."""
        with self._child:  # closes its pipes
            process.stop(self._child)

    def _ask(self, line: str) -> bytes:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(line.encode() + b"\n")
        self._child.stdin.flush()
        if answer := self._child.stdout.readline():
            return answer
        raise CannotRun("the model in process ended: its own lines above say why")


def _start(words: Sequence[str], cpus: tuple[int, ...], **rest: Any) -> "subprocess.Popen[bytes]":
    """A program as a child on `cpus`."""
    before = machine.usable_cpus()
    machine.pin(cpus)  # a child inherits it
    try:
        return process.start(["-m", "loadtest.benchmark.serving.environments", *words], **rest)
    finally:
        machine.pin(before)


if __name__ == "__main__":
    process.die_with_parent()
    os.execv(sys.argv[1], sys.argv[1:])  # noqa: S606  # the benchmark's own words
