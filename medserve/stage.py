"""One stage asks another: a process of its own, for what it prints."""

from collections.abc import Iterable
from tempfile import TemporaryFile

from medserve import errors, process
from medserve.errors import BadInput, CannotRun


def ask(words: Iterable[str]) -> bytes:
    """Run `python -m ...` to its end and return what it printed. Raises BadInput or CannotRun with its last line."""
    with TemporaryFile() as out, TemporaryFile() as err:
        child = process.start(words, stdout=out, stderr=err, env={errors.EVENTS: ""})
        try:
            code = child.wait()
        finally:
            process.stop(child)
        out.seek(0)
        err.seek(0)
        if code != 0:
            lines = [line for line in err.read().decode(errors="replace").splitlines() if line.strip()]
            why = lines[-1].removeprefix("error: ") if lines else process.describe_exit(code)
            raise BadInput(why) if code == 2 else CannotRun(why)
        return out.read()
