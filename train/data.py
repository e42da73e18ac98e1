"""Data sets on disk: archives are unpacked once, into arrays that are then memory-mapped.

    ROOT/bloodmnist_64.npz          the archive under MedMNIST's own name (28 px: bloodmnist.npz)
    ROOT/unpacked/scans-1a2b3c4d/   one's own images, see `train.own`, with the beginning of the source's digest
    ROOT/unpacked/bloodmnist_64/    {split}_images.npy uint8 (n, H, W, C), {split}_labels.npy int64, manifest.json

ROOT is MEDMNIST_ROOT, else ~/.medmnist. Digests are computed when a folder is written; later a file is hashed again
only if its size or modification time differs. An unpacked folder no longer needs its archive.
"""

import errno
import hashlib
import mmap
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from medserve.errors import BadInput, CannotRun
from medserve.models import DatasetSpec, Split, Task
from medserve.spec import SCHEMA, Noun, Window
from medserve.store import encode, file_digest, locked, new_folder, read_json, sha256, write_json
from medserve.tables import DATASETS, check_size, is_path, pick
from train import arrays, own, synthetic
from train.archives import MB, official, say

MAX_RESIDENT_BYTES = 256 << 20
"""Bytes of mapped images that a process keeps in memory before it releases them."""

DEFAULT_SIZE = 28
DIGITS = 8
"""Of the source's digest in the name of a folder of one's own images."""
UNPACKED = re.compile(rf".+-[0-9a-f]{{{DIGITS}}}")
"""The name of such a folder."""
FAULT_AROUND_BYTES = 128 << 10
"""Bytes that the kernel may map in addition to each image that is read."""


class Manifest(Noun, frozen=True, kw_only=True):
    """`manifest.json` of an unpacked folder. A stamp is (size in bytes, modification time in nanoseconds).

    `source` is the MD5 of the archive, the version of the drawing, or the digest of one's own images, whose files have
    the `listing` and were read through the `window`; `files` maps a file name to its SHA-256.
    """

    schema: int = SCHEMA
    dataset: str
    size: int
    classes: tuple[str, ...]
    source: str
    unofficial: bool
    archive: tuple[int, int] | None = None
    listing: str | None = None
    window: Window | None = None
    files: dict[str, str]
    stamps: dict[str, tuple[int, int]]


class Dataset:
    """An opened data set.

    `classes` are the class names in label order, `digest` is a SHA-256 over all arrays, `unofficial` means that the
    archive was not the official one. `unpacked` is the name of the folder of one's own images, empty for others.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.name = manifest.dataset
        row = DATASETS.get(manifest.dataset)
        self.licence, self.unpacked = (row.licence, "") if row else ("", folder.name)
        self.window = manifest.window
        self.size = manifest.size
        self.classes = manifest.classes
        self.unofficial = manifest.unofficial
        self.digest = hashlib.sha256(encode(dict(sorted(manifest.files.items())))).hexdigest()
        self._labels: dict[Split, NDArray[np.int64]] = {
            split: np.load(folder / f"{split}_labels.npy") for split in arrays.SPLITS
        }
        self._images: dict[Split, np.memmap[Any, np.dtype[np.uint8]]] = {
            split: np.load(folder / f"{split}_images.npy", mmap_mode="r") for split in arrays.SPLITS
        }
        self.channels = int(self._images["test"].shape[3])
        self.task: Task = row.task if row else "multi-label" if self._labels["test"].ndim == 2 else "multi-class"
        self._resident_bytes = 0

    def images(self, split: Split) -> NDArray[np.uint8]:
        """All images of a split, uint8 (n, H, W, C), mapped and read-only. Use `take` to read many of them."""
        return np.asarray(self._images[split])

    def labels(self, split: Split) -> NDArray[np.int64]:
        """All labels of a split, int64 (n,), or 0 or 1 (n, classes) with several labels per image."""
        return self._labels[split]

    def take(self, split: Split, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """A copy of the images at `indices`. Releases mapped pages in time: they count as memory of the process."""
        images: NDArray[np.uint8] = self.images(split).take(indices, axis=0)
        self._resident_bytes += images.nbytes + len(images) * FAULT_AROUND_BYTES
        if self._resident_bytes > MAX_RESIDENT_BYTES:
            self._resident_bytes = 0
            for mapped in self._images.values():
                assert isinstance(mapped.base, mmap.mmap)
                mapped.base.madvise(mmap.MADV_DONTNEED)
        return images


def root() -> Path:
    """The folder of archives, shared with the `medmnist` package."""
    return Path(os.environ.get("MEDMNIST_ROOT") or Path.home() / ".medmnist")


def stem(name: str, size: int) -> str:
    """The file name of an archive without its extension, as MedMNIST spells it."""
    return name if size == 28 else f"{name}_{size}"


def is_available(name: str, size: int) -> bool:
    """Whether this machine has a data set, unpacked or as an archive."""
    manifest = root() / "unpacked" / stem(name, size) / "manifest.json"
    return manifest.is_file() or (root() / f"{stem(name, size)}.npz").is_file()


def open_dataset(
    name: str,
    size: int | None = None,
    *,
    unofficial: bool = False,
    thorough: bool = False,
    window: Window | None = None,
) -> Dataset:
    """Open a data set, unpacked or drawn first if necessary; `thorough` hashes every array again.

    `name` is that of a row of the table, the path of one's own images, or the folder into which they were unpacked.
    `size` in pixels is 28 when null, or that of one's own images. Raises BadInput for an unknown name or size, for bad
    images, and for an archive that is missing, damaged or, unless `unofficial`, without the official MD5; CannotRun
    when the disk is full.
    """
    if is_path(name) or (name not in DATASETS and UNPACKED.fullmatch(name)):
        return _open_own(name, size, thorough, window)
    if window is not None:
        raise BadInput(f"{name}: a window is for image files of one's own, whose folder has a slash: ./{name}")
    size = size or DEFAULT_SIZE
    spec = pick(DATASETS, "dataset", name)
    check_size(spec, size)
    folder = root() / "unpacked" / stem(name, size)
    archive = None if name == "synthetic" else root() / f"{stem(name, size)}.npz"

    def make() -> Manifest:
        get = f"get it by `medserve data fetch {name} --size {size}`"
        if archive and not archive.is_file():
            raise BadInput(f"{archive}: no such file; {get}, or set MEDMNIST_ROOT to the folder that has it")
        try:
            return _make(folder, spec, size, archive, unofficial)
        except arrays.DAMAGE_ERRORS as error:
            raise BadInput(f"{archive}: damaged, or not an npz archive ({error}); remove it and {get}") from None

    manifest = _current_or_made(folder, archive, None if archive else synthetic.VERSION, thorough, make)
    if manifest.unofficial and not unofficial:
        raise _unofficial(archive or folder, manifest.source)
    return Dataset(folder, manifest)


def _open_own(name: str, size: int | None, thorough: bool, window: Window | None) -> Dataset:
    """Open images of one's own, by their path or by the name of the folder into which they were unpacked."""

    def check(found: int) -> None:
        if size not in (None, found):
            raise BadInput(f"{name}: images of {found} px, not of {size} px; ask for {found} px, or resize them first")

    unpacked = root() / "unpacked"
    if not is_path(name):
        manifest = _current_manifest(unpacked / name, None, None, thorough)
        if manifest is None:
            raise BadInput(
                f"{name}: not unpacked on this machine; `medserve data prepare PATH` of its images does that"
            )
        check(manifest.size)
        return Dataset(unpacked / name, manifest)
    source = own.Source(name, window)
    known = (_manifest_or_none(path) for path in sorted(unpacked.glob(f"{source.name}-*")))
    listed = next((one.source for one in known if one and one.listing == source.listing), None)
    digest = listed or source.digest
    folder = unpacked / f"{source.name}-{digest[:DIGITS]}"

    def make() -> Manifest:
        try:
            survey = source.survey()
            check(survey.size)
            with _check_disk_space(folder, survey.required), new_folder(folder) as partial:
                survey.write(partial)
                manifest = _finish(partial, source.name, survey.size, survey.classes, source.digest)
                manifest = msgspec.structs.replace(manifest, listing=source.listing, window=window)
                write_json(partial / "manifest.json", manifest)
                return manifest
        except arrays.DAMAGE_ERRORS as error:
            raise BadInput(f"{name}: damaged, or not an npz archive ({error}); write it again") from None

    manifest = _current_or_made(folder, None, digest, thorough, make)
    check(manifest.size)
    if manifest.listing != source.listing:
        manifest = msgspec.structs.replace(manifest, listing=source.listing)
        # The same content with other times. The listing only avoids hashing, so a read-only folder is no error.
        with suppress(OSError):
            write_json(folder / "manifest.json", manifest)
    return Dataset(folder, manifest)


def _current_or_made(
    folder: Path, archive: Path | None, source: str | None, thorough: bool, make: Callable[[], Manifest]
) -> Manifest:
    """The manifest of a complete folder, which is made first if necessary, by one process at a time."""
    manifest = _current_manifest(folder, archive, source, thorough)
    if manifest is None:
        with locked(folder):
            for leftover in folder.parent.glob(f".{folder.name}.*.partial"):
                shutil.rmtree(leftover)
            # Another process may have written the folder while this process waited for the lock.
            manifest = _current_manifest(folder, archive, source, thorough=False) or make()
    return manifest


def _manifest_or_none(folder: Path) -> Manifest | None:
    """The manifest of a folder; None for one that is not unpacked, or was by another version of the program."""
    try:
        return read_json(folder / "manifest.json", Manifest)
    except BadInput:
        return None


def _current_manifest(folder: Path, archive: Path | None, source: str | None, thorough: bool) -> Manifest | None:
    """The manifest of a folder that is complete and of this archive or `source`; None if it must be written anew."""
    manifest = _manifest_or_none(folder)
    if manifest is None or source not in (None, manifest.source):
        return None
    updated = manifest
    if archive is not None and archive.exists() and _stamp(archive) != manifest.archive:
        if file_digest(archive, "md5") != manifest.source:
            return None
        updated = msgspec.structs.replace(updated, archive=_stamp(archive))
    for name, digest in manifest.files.items():
        path = folder / name
        if not path.is_file():
            return None
        if thorough or _stamp(path) != manifest.stamps[name]:
            if sha256(path) != digest:
                say(f"{path}: its SHA-256 differs from the manifest's; writing the folder again")
                return None
            updated = msgspec.structs.replace(updated, stamps=updated.stamps | {name: _stamp(path)})
    if updated != manifest:
        # The new stamps only avoid hashing next time, so a read-only folder is no error.
        with suppress(OSError):
            write_json(folder / "manifest.json", updated)
    return updated


def _make(folder: Path, spec: DatasetSpec, size: int, archive: Path | None, unofficial: bool) -> Manifest:
    """Unpack an archive into a new folder, or draw the images where there is none; the folder's manifest."""
    if archive is None:
        required = (spec.train + spec.val + spec.test) * size * size * 3
        source, classes, is_official = synthetic.VERSION, tuple(synthetic.CLASSES), True
    else:
        row = official(spec.name, size)
        required, source, classes = arrays.check_members(archive), file_digest(archive, "md5"), row.classes
        is_official = source == row.md5
        if not is_official and not unofficial:
            raise _unofficial(archive, source)
    if len(classes) != spec.classes:
        raise CannotRun(f"{spec.name} has {len(classes)} class names; the table says {spec.classes} classes")
    with _check_disk_space(folder, required), new_folder(folder) as partial:
        if archive is None:
            arrays.draw(partial, spec, size)
        else:
            counts = arrays.unpack(archive, partial, size, classes, spec.channels, spec.task)
            if is_official and counts != (expected := (spec.train, spec.val, spec.test)):
                raise BadInput(f"{archive}: has {counts} images per split; expected {expected}")
        manifest = _finish(partial, spec.name, size, classes, source)
        manifest = msgspec.structs.replace(
            manifest, unofficial=not is_official, archive=_stamp(archive) if archive else None
        )
        write_json(partial / "manifest.json", manifest)
    return manifest


def _finish(folder: Path, name: str, size: int, classes: tuple[str, ...], source: str) -> Manifest:
    """The manifest of a folder whose arrays are written."""
    files = sorted(folder.glob("*.npy"))
    return Manifest(
        dataset=name,
        size=size,
        classes=classes,
        source=source,
        unofficial=False,
        files={path.name: sha256(path) for path in files},
        stamps={path.name: _stamp(path) for path in files},
    )


def _unofficial(path: Path, md5: str) -> BadInput:
    return BadInput(
        f"{path}: its MD5 {md5} is not the official archive's; to use it anyway add --unofficial "
        "(in a study: unofficial = true), which marks every result"
    )


def _stamp(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns


@contextmanager
def _check_disk_space(folder: Path, required: int) -> Iterator[None]:
    """Raise CannotRun if fewer than `required` bytes are free, or if the disk fills up during the block."""
    free = shutil.disk_usage(folder.parent).free
    mend = "free some, or set MEDMNIST_ROOT to a folder on another disk"
    if free < required:
        raise CannotRun(f"{folder}: needs {required / MB:.0f} MB, the disk has {free / MB:.0f} MB free; {mend}")
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise CannotRun(f"{folder}: {error.strerror} while writing {required / MB:.0f} MB; {mend}") from None
