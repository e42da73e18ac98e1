"""Runs a stage in a process of its own and returns its output."""

from collections.abc import Iterable
from tempfile import TemporaryFile

from medserve import errors, process
from medserve.errors import BadInput, CannotRun


def ask(arguments: Iterable[str]) -> bytes:
    """Run `python ARGUMENTS` and return its standard output. Raises BadInput or CannotRun with its last error line."""
    with TemporaryFile() as out, TemporaryFile() as err:
        child = process.start(arguments, stdout=out, stderr=err, env={errors.EVENTS: ""})
        try:
            code = child.wait()
        finally:
            process.stop(child)
        out.seek(0)
        err.seek(0)
        if code != 0:
            lines = [line for line in err.read().decode(errors="replace").splitlines() if line.strip()]
            reason = lines[-1].removeprefix("error: ") if lines else process.describe_exit(code)
            raise BadInput(reason) if code == 2 else CannotRun(reason)
        return out.read()
