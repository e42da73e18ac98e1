"""The folder of a run: whether a study may go on in it, and its lock."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from medserve import store
from medserve.errors import BadInput
from medserve.study import Study

FOLDERS = ("results", "artifacts", "checkpoints", "logs", "failures", "selftest", "figures", "tables")
"""In a run's folder: what the run and its report write."""


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the run's folder; the lock goes with the process, however it ends."""
    out.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out / ".lock", os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(f"{out}: another run works in this folder; wait for it or give another --out") from None
        yield
    finally:
        os.close(descriptor)


def check(study: Study, out: Path) -> None:
    """Raise BadInput when `out` is neither free nor a run of this study. Changes nothing."""
    path = out / "study.json"
    if path.is_file():
        before, now = msgspec.to_builtins(store.read_json(path, Study)), msgspec.to_builtins(study)
        # A time limit changes no result, and a run that met it goes on with a higher one.
        if different := [field for field in now if before[field] != now[field] and field != "job_hours"]:
            raise BadInput(f"{out} holds a run of this study with another '{different[0]}'; give another --out")
    elif out.is_dir():
        for found in sorted(out.iterdir()):
            partial = store.PARTIAL.fullmatch(found.name)
            # A self-test may have been made by hand.
            made = found.name == "selftest" and (found / "selftest.json").is_file()
            if not (made or found.name == ".lock" or (partial and partial["name"] in ("study.json", "selftest"))):
                raise BadInput(f"{out} holds {found.name!r} and is no run; give another --out, or an empty folder")
    elif out.exists():
        raise BadInput(f"{out} is a file; give another --out")
