"""One clear line for bad input: what is wrong, where, how to mend it."""

import errno
import os
import re
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any, NoReturn

import msgspec

from medserve import process

# Set by the study runner, so that the last words of a stage can be read by a program.
EVENTS = "MEDSERVE_EVENTS"
INTERRUPTED = 130
MENDS = {
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EDQUOT: "free some space, or have the quota raised",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), or write to another file system",
    errno.EACCES: "change its permissions, or give another path",
    errno.EPERM: "change its permissions, or give another path",
    errno.EROFS: "give a folder on another disk",
    errno.EIO: "the disk failed to read or write; look into the system log, and use another disk",
    errno.ESTALE: "the network file system lost it; mount it again",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "the system has too many open files; end other programs",
    errno.ENOMEM: "end other programs, or take a machine with more memory",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "remove the symbolic link",
    errno.ENOTDIR: "a file has the place of a folder; give another path",
    errno.EISDIR: "a folder has the place of a file; give another path",
    errno.EEXIST: "give another path",
    errno.EADDRINUSE: "end the program that uses it, or give another address",
}
"""What the system refuses and the user can mend, by the error's number; all else keeps its traceback."""


ALSO_CALLED = {
    **dict.fromkeys(("jax", "flax", "jax/flax", "nnx"), "flax_nnx"),
    **dict.fromkeys(("tensorflow", "keras", "tf", "tensorflow/keras"), "keras_tf"),
    **dict.fromkeys(("torch", "pt"), "pytorch"),
    **dict.fromkeys(("onnxruntime", "ort"), "onnx_runtime"),
    **dict.fromkeys(("openvino", "ov"), "openvino_cpu"),
    "savedmodel": "saved_model",
    "tensorrt": "onnx_tensorrt",
}
"""What users write for some of our names."""

NAME = r"^(?!\.+\Z)[A-Za-z0-9._-]{1,200}\Z"
"""What may become part of a path. File systems take 255 bytes, of which temporary names need some."""


class BadInput(ValueError):
    """Input that the program refuses: a line for each thing, which names it and says how to mend it."""

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)
        self.lines = lines

    def __str__(self) -> str:
        return "; ".join(self.lines)


class CannotRun(RuntimeError):
    """A cell that this machine cannot run (missing package, device, operator). `str()` is the reason in its row."""


class Ended(msgspec.Struct, frozen=True, tag_field="event", tag="error"):
    """The last line of a job's standard output when it failed: the reason."""

    reason: str


def unknown(kind: str, name: str, known: Iterable[str]) -> BadInput:
    """The refusal of a name that is in no table, with what there is instead."""
    names = sorted(known)
    also = ALSO_CALLED.get(name.lower())
    near = [also] if also in names else get_close_matches(name, names, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return BadInput(f"unknown {kind} {name!r}{hint}; there is: {', '.join(names) or 'none'}")


def check_name(kind: str, name: str) -> None:
    """Raise BadInput for a name that cannot be part of a path on every system."""
    if re.search(NAME, name) is None:
        raise BadInput(
            f"{kind} {name[:80]!r}: cannot be part of a path; use letters, digits, '.', '_' and '-', at most 200,"
            " and not dots alone"
        )


def printable(text: str) -> str:
    """Text as it may go to a terminal: control characters, which could rewrite the screen, become their escapes."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def main(command: Callable[[], None]) -> NoReturn:
    """Run a command as a process of its own: it ends with its parent, and SIGTERM unwinds it like Ctrl-C.

    Leaves with the project's exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted.
    """
    process.die_with_parent()
    process.interruptible()
    try:
        command()
    except BadInput as error:
        _last_words(2, *error.lines)
    except (CannotRun, msgspec.ValidationError) as error:
        _last_words(1, str(error))
    except OSError as error:
        # A full disk or a missing permission is the user's to mend, and a traceback does not say how.
        if error.errno not in MENDS:
            raise
        where = f": {error.filename}" if error.filename else ""
        _last_words(1, f"{error.strerror}{where}; {MENDS[error.errno]}")
    except KeyboardInterrupt as interrupt:
        _last_words(INTERRUPTED, str(interrupt) or "interrupted")
    except SystemExit as leaving:
        # Typer turns Ctrl-C into this.
        if leaving.code == INTERRUPTED:
            cause: BaseException | None = leaving
            while cause is not None and not isinstance(cause, KeyboardInterrupt):
                cause = cause.__context__
            _last_words(INTERRUPTED, str(cause or "") or "interrupted")
        raise
    sys.exit(0)


def print_event(event: Any) -> None:
    """Print one line of JSON for the program that started this process."""
    print(msgspec.json.encode(event).decode(), flush=True)


def _last_words(code: int, *lines: str) -> NoReturn:
    shown = [printable(" ".join(line.split())) for line in lines]
    if os.environ.get(EVENTS):
        print_event(Ended("; ".join(shown)))
    for line in shown:
        print(f"error: {line}", file=sys.stderr)
    sys.exit(code)
