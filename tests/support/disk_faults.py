"""Disk faults in one process: its N-th operation that changes the disk fails, or is where the process is killed.

Counted are, below one folder: opening a file for writing, each write, fsync, rename, new folder and removal, as Python
makes them. What a library writes by itself (Parquet, weights) is seen when it is renamed. An fsync is counted and not
made: no test cuts the power, and `check_order` looks at what a power failure would leave.
"""

import builtins
import errno
import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from medserve import store

Fault = Literal["full", "error", "kill", "none"]
"""From the N-th operation on there is no space; the N-th alone is an I/O error; the N-th is never begun; no fault."""
FAULTS: tuple[Fault, ...] = ("full", "error", "kill")
VARIABLE = "MEDSERVE_DISK_FAULT"
"""`FAULT NUMBER FOLDER REACHED WORD...`: a process whose command has all of the words gets that fault."""


class Disk:
    """Counts the operations below `folder` and fails the `number`-th; then it makes the file `reached`.

    `done` has the operations that were made, in order: kind, path, and of a rename the path before.
    """

    def __init__(
        self, folder: Path, fault: Fault = "none", number: int = sys.maxsize, reached: Path | None = None
    ) -> None:
        self.folder, self.fault, self.number, self.reached = os.path.realpath(folder), fault, number, reached
        self.count = 0
        self.done: list[tuple[str, str, str]] = []

    def install(self, exchange: bool = True) -> "Disk":
        """Put it in the place of the system's functions, in this process for good."""
        plain_open, self.open = io.open, os.open
        builtins.open = io.open = self._wrap_open(plain_open)
        for kind in ("rename", "replace", "mkdir", "unlink", "rmdir"):
            setattr(os, kind, self._wrap(kind, getattr(os, kind)))
        os.fsync = self._wrap("fsync", lambda descriptor: None)
        os.open = self._wrap("open", os.open)
        real = store._exchange if exchange else lambda one, other: False
        store._exchange = self._wrap("exchange", real)
        return self

    def step(self, kind: str, path: str, source: str = "", half: Callable[[], object] = lambda: None) -> None:
        """Count an operation; raise or end this process where it is the one. `half` makes half of it before that."""
        if not os.path.realpath(path).startswith(self.folder):
            return
        self.count += 1
        if self.count == self.number and self.reached is not None:
            os.close(self.open(self.reached, os.O_CREAT | os.O_WRONLY))
        if self.fault == "kill" and self.count == self.number:
            half()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "error" and self.count == self.number:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        if self.fault == "full" and self.count >= self.number and kind not in ("unlink", "rmdir"):
            half()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        self.done.append((kind, path, source))

    def _wrap(self, kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(what: Any, *more: Any, **named: Any) -> Any:
            if kind == "open" and not more[0] & (os.O_WRONLY | os.O_RDWR):
                return real(what, *more, **named)
            path, source = where(what, named.get("dir_fd")), ""
            if kind in ("rename", "replace", "exchange"):
                path, source = where(more[0]), path
            if kind not in ("unlink", "rmdir", "mkdir") or os.path.lexists(path) == (kind != "mkdir"):
                self.step(kind, path, source)
            return real(what, *more, **named)

        return wrapped

    def _wrap_open(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def opened(file: Any, mode: str = "r", buffering: int = -1, *more: Any, **named: Any) -> Any:
            if isinstance(file, int) or not set(mode) & set("wax") or buffering != -1:
                return real(file, mode, buffering, *more, **named)
            path = where(file)
            if not os.path.realpath(path).startswith(self.folder):
                return real(file, mode, buffering, *more, **named)
            self.step("open", path)
            binary = io.BufferedWriter(_Raw(self, path, mode.replace("b", "").replace("t", "")))
            return binary if "b" in mode else io.TextIOWrapper(binary, *more, **named)

        return opened


class _Raw(io.FileIO):
    """A file whose writes are counted."""

    def __init__(self, disk: Disk, path: str, mode: str) -> None:
        self._disk, self._path = disk, path
        super().__init__(path, mode)

    def write(self, data: Any) -> int:
        whole = super().write
        self._disk.step("write", self._path, half=lambda: whole(memoryview(data)[: len(data) // 2]))
        return whole(data)


def where(path: Any, folder: int | None = None) -> str:
    """The path behind a path, or a descriptor, or a name in an open folder."""
    opened = path if isinstance(path, int) else folder
    place = "" if opened is None else str(Path(f"/proc/self/fd/{opened}").readlink())
    return place if isinstance(path, int) else str(Path(place, os.fsdecode(path)))


def attempt(write: Callable[[], object], disk: Disk, exchange: bool = True, record: Path | None = None) -> str:
    """Run a writer in a forked child with this disk. How it ended: done (no fault reached), swallowed, failed, killed.

    The operations that were made are written to `record`, outside of the disk's folder.
    """
    child = os.fork()
    if child == 0:
        code = 3
        try:
            disk.install(exchange)
            write()
            code = 0 if disk.count < disk.number else 1
            if record is not None:
                record.write_text(json.dumps(disk.done))
        except OSError as error:
            code = 2 if error.errno in (errno.ENOSPC, errno.EIO) else 3
        finally:
            if code == 3:
                traceback.print_exc()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {0: "done", 1: "swallowed", 2: "failed", -signal.SIGKILL: "killed"}[code]


def check_order(done: list[tuple[str, str, str]]) -> None:
    """Assert that all is on the disk before it gets its name, and that the name is there before the writer ends."""
    dirty: set[str] = set()
    for kind, path, source in done:
        parent = str(Path(path).parent)
        if kind in ("open", "write", "mkdir"):
            dirty |= {path, parent}
        elif kind == "fsync":
            dirty.discard(path)
        elif kind in ("unlink", "rmdir"):
            dirty -= {one for one in dirty if one == path or one.startswith(f"{path}/")}
        else:
            early = [one for one in dirty if one == source or one.startswith(f"{source}/")]
            assert not early, f"{source} was renamed to {path} before the flush of {early}"
            dirty.add(parent)
    assert not dirty, f"never flushed: {sorted(dirty)}"


def environment(fault: Fault, number: int, folder: Path, reached: Path, words: str, site: Path) -> dict[str, str]:
    """What a process and its children need in their environment for one of them to have the fault."""
    site.mkdir(exist_ok=True)
    tests = str(Path(__file__).parent)
    code = f"import sys\nsys.path.insert(0, {tests!r})\nimport disk_faults\ndisk_faults.start()\n"
    (site / "sitecustomize.py").write_text(code)
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {VARIABLE: f"{fault} {number} {folder} {reached} {words}", "PYTHONPATH": os.pathsep.join(paths)}


def start() -> None:
    """Called at the start of each Python process: install the fault where the environment says so."""
    fault, number, folder, reached, *words = os.environ[VARIABLE].split()
    if set(words) <= set(sys.orig_argv):
        Disk(Path(folder), fault, int(number), Path(reached)).install()  # type: ignore[arg-type]
