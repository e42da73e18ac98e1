"""One clear line for bad input: what is wrong, where, how to mend it."""

import errno
import os
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import NoReturn

import msgspec

from medserve import process

# Set by the study runner, so that the last words of a stage can be read by a program.
EVENTS = "MEDSERVE_EVENTS"
INTERRUPTED = 130


class BadInput(ValueError):
    """Input that the program refuses. `str()` is one line that names the thing and how to mend it."""


class CannotRun(RuntimeError):
    """A cell that this machine cannot run (missing package, device, operator). `str()` is the reason in its row."""


def unknown(kind: str, name: str, known: Iterable[str]) -> BadInput:
    """The refusal of a name that is in no table, with what there is instead."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return BadInput(f"unknown {kind} {name!r}{hint}; there is: {', '.join(names) or 'none'}")


def main(command: Callable[[], None]) -> NoReturn:
    """Run a command as a process of its own: it ends with its parent, and SIGTERM unwinds it like Ctrl-C.

    Leaves with the project's exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted.
    """
    process.die_with_parent()
    process.interruptible()
    try:
        command()
    except BadInput as error:
        _last_words(str(error), 2)
    except (CannotRun, msgspec.ValidationError) as error:
        _last_words(str(error), 1)
    except OSError as error:
        # A full disk or a missing permission is the user's to mend, and a traceback does not say how.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EADDRINUSE):
            raise
        _last_words(f"{error.strerror}: {error.filename or 'the output folder'}", 1)
    except KeyboardInterrupt:
        _last_words("interrupted", INTERRUPTED)
    except SystemExit as leaving:
        # Typer turns Ctrl-C into this, without a word.
        if leaving.code == INTERRUPTED:
            _last_words("interrupted", INTERRUPTED)
        raise
    sys.exit(0)


def _last_words(line: str, code: int) -> NoReturn:
    line = " ".join(line.split())
    if os.environ.get(EVENTS):
        print(msgspec.json.encode({"event": "error", "reason": line}).decode(), flush=True)
    print(f"error: {line}", file=sys.stderr)
    sys.exit(code)
