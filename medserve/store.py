"""Reading and writing: atomic, digested, strict. Nothing half-written is ever read as whole.

Writers work under `.NAME.PID.partial`, flush that to disk, rename it to NAME and flush the folder above, so that the
old or the new content is found whole whenever the process or the machine stops.
"""

import ctypes
import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec.inspect import DictType, ListType, StructType, Type, UnionType, VarTupleType, type_info

from medserve.errors import BadInput, printable
from medserve.models import Artifact, Checkpoint
from medserve.spec import SCHEMA
from medserve.tables import FORMATS, pick

Value = TypeVar("Value")
ARTIFACT = "artifact.json"
"""Manifest of an artifact."""
PARTIAL = re.compile(r"\.(?P<name>.+)\.\d+(?P<old>\.old)?\.partial", re.DOTALL)
"""The temporary names of the writers below; `old` marks a folder that was moved aside to make room for the new one."""
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
CHUNK = 1 << 20


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    return file_digest(path, "sha256")


def file_digest(path: Path, algorithm: str) -> str:
    """Hexadecimal digest of a file by any algorithm of hashlib, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def digests(folder: Path, *, without: str) -> dict[str, str]:
    """SHA-256 of every file below `folder` by its relative path, except the manifest that will hold them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): sha256(path) for path in files if str(path.relative_to(folder)) != without}


def check_digests(folder: Path, files: dict[str, str]) -> None:
    """Raise BadInput that names the first file of `files` that lies outside `folder`, is missing, or differs."""
    for name, digest in files.items():
        path = folder / name
        # As it is written and as it resolves: neither `..` nor a symbolic link may leave the folder.
        if ".." in Path(name).parts or not path.resolve().is_relative_to(folder.resolve()):
            raise BadInput(f"{folder}: its manifest names {name!r}, which lies outside; do not use this folder")
        if not path.is_file():
            raise BadInput(f"{path}: named in the manifest, but missing; make the folder {folder.name} again")
        if sha256(path) != digest:
            raise BadInput(f"{path}: its SHA-256 is not the manifest's; make the folder {folder.name} again")


def encode(value: Any) -> bytes:
    """A noun as indented JSON with a final newline."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


def write_json(path: Path, value: Any) -> None:
    """Write a noun as JSON, atomically."""
    write_bytes(path, encode(value))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it, so that a reader sees all of it or none."""
    with new_files({path: content}):
        pass


@contextmanager
def new_files(contents: Mapping[Path, bytes]) -> Iterator[None]:
    """Write files under temporary names, then run the block, then give all of them their names.

    A full disk, or an exception in the block, leaves the old files as they are.
    """
    partials = {path: partial_of(path) for path in contents}
    try:
        for path, partial in partials.items():
            _make_folder(path.parent)
            with _naming(partial), partial.open("wb") as file:
                file.write(contents[path])
                file.flush()
                os.fsync(file.fileno())
        yield
        for path, partial in partials.items():
            partial.replace(path)
        for folder in {path.parent for path in contents}:
            _flush(folder)
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)


def partial_of(path: Path) -> Path:
    """The temporary name under which this process writes `path`; `sweep` knows it."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def commit(partial: Path, target: Path) -> None:
    """Flush a file that was written under a temporary name, and rename it to `target`, which it may replace."""
    _flush(partial)
    partial.replace(target)
    _flush(target.parent)


class _Versioned(msgspec.Struct):
    schema: int | None = None


def version(path: Path) -> int | None:
    """The schema that a manifest states, of whatever kind; null when it states none or cannot be read."""
    with suppress(OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return msgspec.json.decode(path.read_bytes(), type=_Versioned).schema
    return None


def read_json(path: Path, kind: type[Value], digest: str | None = None) -> Value:
    """Decode a noun, without the fields that it does not have: those of a later version.

    Raises BadInput when the file is missing, is not JSON, is not of this kind, or is of an older schema than is read.
    A `digest` is the SHA-256 that the file must have to be decoded at all.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file{_elsewhere(path)}") from None
    except NotADirectoryError:
        raise BadInput(f"{path.parent}: a file; give the folder that holds {path.name}") from None
    if digest is not None and (found := hashlib.sha256(content).hexdigest()) != digest:
        raise BadInput(f"{path}: its SHA-256 is {found}, expected {digest}; use the file that was reviewed")
    oldest = getattr(kind, "oldest", SCHEMA)
    try:
        stated = msgspec.json.decode(content, type=_Versioned).schema
        if stated is None or stated >= oldest:
            with suppress(msgspec.ValidationError):
                return msgspec.json.decode(content, type=kind)
            known = _known_fields(msgspec.json.decode(content), type_info(kind))
            return msgspec.json.decode(msgspec.json.encode(known), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not a valid {kind.__name__}: {error}") from None
    raise BadInput(f"{path}: schema {stated}, this program reads {oldest} and later; make it again")


def _elsewhere(path: Path) -> str:
    """Where the manifests are that a user seems to look for."""
    if path.name != ARTIFACT:
        return ""
    if (path.parent / "checkpoint.json").is_file():
        return "; this is a checkpoint, of which `medserve export` makes an artifact"
    if found := sorted(path.parent.glob(f"artifacts/*/{path.name}")):
        return f"; this is a run, whose artifacts are {found[0].parent} and the like"
    return "; an artifact is a folder that `medserve export` or `medserve adopt` made"


def _known_fields(value: Any, kind: Type) -> Any:
    """Decoded JSON without the fields that its types do not have."""
    match value, kind:
        case dict(), StructType(fields=fields):
            types = {field.encode_name: field.type for field in fields}
            return {name: _known_fields(item, types[name]) for name, item in value.items() if name in types}
        case dict(), DictType(value_type=item_type):
            return {name: _known_fields(item, item_type) for name, item in value.items()}
        case list(), VarTupleType(item_type=item_type) | ListType(item_type=item_type):
            return [_known_fields(item, item_type) for item in value]
        case dict(), UnionType(types=types):  # a noun or null
            return _known_fields(value, next((each for each in types if isinstance(each, StructType)), types[0]))
    return value


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Lock `target` while it is written; another process waits. The kernel frees the lock of a killed process."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f".{target.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(printable(f"waiting for another process that writes {target}"), file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill, that becomes `target` when the block ends well and vanishes when it does not.

    An existing `target` is replaced. Leftovers of killed writers are swept by `sweep`.
    """
    _make_folder(target.parent)
    partial = partial_of(target)
    _remove(partial)
    partial.mkdir()
    try:
        yield partial
        for place, _, files in os.walk(partial, topdown=False):
            for name in files:
                if stat.S_ISREG((path := Path(place, name)).lstat().st_mode):
                    _flush(path)
            _flush(Path(place))
        _put(partial, target)
    finally:
        # What has this name now came of a block that failed, or is what was replaced.
        _remove(partial)


def sweep(folder: Path, only: Collection[str] | None = None) -> None:
    """Remove what killed writers left below `folder`, and put back what one of them had moved aside.

    It looks into `folder` itself and into its subfolders, all or `only` those with these names. It follows no symbolic
    link and takes no other names than those of the writers here. Call it only while holding the run's lock.
    """
    for place, folders, files in os.walk(folder):
        found = [name for name in [*folders, *files] if PARTIAL.fullmatch(name)]
        below = [name for name in folders if only is None or Path(place) != folder or name in only]
        folders[:] = [name for name in below if name not in found]
        for name in found:
            path, match = Path(place, name), PARTIAL.fullmatch(name)
            if match is None or path.is_symlink():
                continue
            target = path.with_name(match["name"])
            if match["old"] and not os.path.lexists(target):
                path.rename(target)
                _flush(target.parent)
            else:
                _remove(path)


def _make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing, so that they are on the disk too."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _flush(folder.parent)


def _put(partial: Path, target: Path) -> None:
    """Rename a whole folder to `target`; what was there has the partial name afterwards, or is gone."""
    old = target.with_name(f".{target.name}.{os.getpid()}.old.partial")
    if not os.path.lexists(target):
        partial.rename(target)
    elif not _exchange(partial, target):
        _remove(old)
        # Between the two renames there is no `target`: `sweep` puts the old one back.
        target.rename(old)
        try:
            partial.rename(target)
        except BaseException:
            old.rename(target)
            raise
    _flush(target.parent)
    _remove(old)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; False where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    if renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


def _flush(path: Path) -> None:
    """Have a file or a folder written to the disk. A folder holds the names of what lies in it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with _naming(path):
            os.fsync(descriptor)
    except OSError as error:
        # Some network file systems have no flush for folders.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in an error of writing or flushing it, which the system gives without."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def _remove(path: Path) -> None:
    """Remove a file or a folder, if there is one; what cannot be removed is left to the next `sweep`."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def read_checkpoint(folder: Path) -> Checkpoint:
    """The manifest of a checkpoint whose weights and test scores are listed, and whose files all have their digests.

    Raises BadInput otherwise.
    """
    checkpoint = read_json(folder / "checkpoint.json", Checkpoint)
    _check_named(folder, checkpoint.files, ("weights.safetensors", "test_scores.npy"), "train it again")
    check_digests(folder, checkpoint.files)
    return checkpoint


def read_artifact(folder: Path, digest: str | None = None) -> Artifact:
    """The manifest of an artifact whose model and golden file are listed, and whose files all have their digests.

    A `digest` is the SHA-256 that the manifest itself must have. Raises BadInput otherwise, and for a symbolic link or
    a file that the manifest does not list; only where there is no model other files may lie in the folder.
    """
    artifact = read_json(folder / ARTIFACT, Artifact, digest)
    if artifact.has_model:
        again = "export it again"
        _check_named(folder, artifact.files, (pick(FORMATS, "format", artifact.format).path, "golden.npz"), again)
        for path in sorted(folder.rglob("*")):
            if path.is_symlink():
                raise BadInput(f"{path}: a symbolic link; an artifact holds no links, so put the file itself there")
            if not path.is_dir() and str(path.relative_to(folder)) not in {ARTIFACT, *artifact.files}:
                raise BadInput(f"{path}: not in the manifest of {folder.name}; remove it, or {again}")
    check_digests(folder, artifact.files)
    return artifact


def _check_named(folder: Path, files: dict[str, str], required: tuple[str, ...], mend: str) -> None:
    for name in required:
        if name not in files:
            raise BadInput(f"{folder}: its manifest lists no {name}, so that file cannot be verified; {mend}")
