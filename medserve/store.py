"""Reading and writing: atomic, digested, strict. Nothing half-written is ever read as whole."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from medserve.errors import BadInput
from medserve.spec import SCHEMA, Artifact, Checkpoint
from medserve.tables import FORMATS, pick

Value = TypeVar("Value")
CHUNK = 1 << 20
ARTIFACT = "artifact.json"
"""Manifest of an artifact."""


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    return file_digest(path, "sha256")


def file_digest(path: Path, algorithm: str) -> str:
    """Hexadecimal digest of a file by any algorithm of hashlib, read in pieces."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
    return digest.hexdigest()


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
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def read_json(path: Path, kind: type[Value], digest: str | None = None) -> Value:
    """Decode a noun. Raises BadInput when the file is missing, is not JSON, or is not of this kind or schema.

    A `digest` is the SHA-256 that the file must have to be decoded at all.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    if digest is not None and (found := hashlib.sha256(content).hexdigest()) != digest:
        raise BadInput(f"{path}: its SHA-256 is {found}, expected {digest}; use the file that was reviewed")
    try:
        value = msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not a valid {kind.__name__}: {error}") from None
    if getattr(value, "schema", SCHEMA) != SCHEMA:
        raise BadInput(f"{path}: schema {getattr(value, 'schema', None)}, this program reads {SCHEMA}; make it again")
    return value


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill, that becomes `target` when the block ends well and vanishes when it does not.

    An existing `target` is replaced. Leftovers of killed writers are swept by `sweep`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        for path in partial.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        old = target.with_name(f".{target.name}.{os.getpid()}.old.partial")
        if target.exists():
            target.rename(old)
        partial.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def sweep(folder: Path) -> None:
    """Remove what killed writers left below `folder`. Call it only while holding the run's lock."""
    for path in sorted(folder.rglob(".*.partial"), reverse=True):
        if path.is_dir():
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
