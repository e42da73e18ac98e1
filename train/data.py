"""Data sets on disk: archives unpacked once into arrays that are mapped into memory ever after.

    ROOT/bloodmnist_64.npz          the archive under MedMNIST's own name (28 px: bloodmnist.npz)
    ROOT/unpacked/bloodmnist_64/    {split}_images.npy uint8 (n, H, W, 3), {split}_labels.npy int64 (n,), manifest.json

ROOT is MEDMNIST_ROOT, else ~/.medmnist. Digests are taken when a folder is made; afterwards a file is hashed again only
when its size or time of change is another. An unpacked folder needs its archive no more.
"""

import errno
import hashlib
import mmap
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from medserve.errors import BadInput, CannotRun
from medserve.spec import SCHEMA, DatasetSpec, Noun, Split
from medserve.store import encode, file_digest, new_folder, read_json, sha256, write_json
from medserve.study import check_size
from medserve.tables import DATASETS, pick
from train import arrays, synthetic
from train.archives import MB, locked, official, say

RESIDENT = 256 << 20
"""Bytes of mapped images that a process may hold in memory before it lets them go."""

FAULT = 128 << 10
"""Bytes that the kernel may map around one touched image."""


class Manifest(Noun, frozen=True, kw_only=True):
    """`manifest.json` of an unpacked folder. A stamp is (bytes, nanoseconds of last change).

    `source` is the MD5 of the archive, or the version of the drawing; `files` maps a name to its SHA-256.
    """

    schema: int = SCHEMA
    dataset: str
    size: int
    classes: tuple[str, ...]
    source: str
    unofficial: bool
    archive: tuple[int, int] | None
    files: dict[str, str]
    stamps: dict[str, tuple[int, int]]


class Dataset:
    """An opened data set.

    `classes` are names in label order, `digest` is a SHA-256 over all arrays, `unofficial` says that the archive was
    not the official one. `resident` bounds the bytes of mapped images held in memory.
    """

    def __init__(self, folder: Path, manifest: Manifest, resident: int = RESIDENT) -> None:
        self.folder = folder
        self.manifest = manifest
        self.spec: DatasetSpec = DATASETS[manifest.dataset]
        self.size = manifest.size
        self.classes = manifest.classes
        self.unofficial = manifest.unofficial
        self.digest = hashlib.sha256(encode(dict(sorted(manifest.files.items())))).hexdigest()
        self._labels: dict[Split, NDArray[np.int64]] = {
            split: np.load(folder / f"{split}_labels.npy") for split in arrays.SPLITS
        }
        self._images: dict[Split, NDArray[np.uint8]] = {}
        self._maps: list[mmap.mmap] = []
        for split in arrays.SPLITS:
            with (folder / f"{split}_images.npy").open("rb") as file:
                shape, _ = arrays.read_header(file)
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                self._images[split] = np.frombuffer(mapped, np.uint8, offset=file.tell()).reshape(shape)
            self._maps.append(mapped)
        self._resident = resident
        self._touched = 0

    def images(self, split: Split) -> NDArray[np.uint8]:
        """All images of a split, uint8 (n, H, W, 3), mapped and read-only. Read many of them through `take`."""
        return self._images[split]

    def labels(self, split: Split) -> NDArray[np.int64]:
        """All labels of a split, int64 (n,)."""
        return self._labels[split]

    def take(self, split: Split, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """A copy of the images at `indices`. Mapped pages count as the process's memory: they are let go in time."""
        taken: NDArray[np.uint8] = self._images[split].take(indices, axis=0)
        self._touched += taken.nbytes + len(taken) * FAULT
        if self._touched > self._resident:
            self._touched = 0
            for mapped in self._maps:
                mapped.madvise(mmap.MADV_DONTNEED)
        return taken


def root() -> Path:
    """The folder of archives, shared with the `medmnist` package."""
    return Path(os.environ.get("MEDMNIST_ROOT") or Path.home() / ".medmnist")


def stem(name: str, size: int) -> str:
    """The name of an archive without its ending, as MedMNIST spells it."""
    return name if size == 28 else f"{name}_{size}"


def is_here(name: str, size: int) -> bool:
    """Whether a data set is unpacked, or its archive is there to be."""
    manifest = root() / "unpacked" / stem(name, size) / "manifest.json"
    return manifest.is_file() or (root() / f"{stem(name, size)}.npz").is_file()


def open_dataset(name: str, size: int, *, unofficial: bool = False, thorough: bool = False) -> Dataset:
    """Open a data set, unpacking or drawing it first where that has not been done; `thorough` hashes every array.

    Raises BadInput for what is not in the tables, an archive that is missing, damaged or, unless `unofficial`, of
    another MD5 than the official one; CannotRun when the disk is full.
    """
    spec = pick(DATASETS, "dataset", name)
    check_size(spec, size)
    folder = root() / "unpacked" / stem(name, size)
    archive = None if name == "synthetic" else root() / f"{stem(name, size)}.npz"
    manifest = _current(folder, archive, thorough)
    if manifest is None:
        with locked(folder):
            for leftover in folder.parent.glob(f".{folder.name}.*.partial"):
                shutil.rmtree(leftover)
            # Another process may have made it while this one waited.
            manifest = _current(folder, archive, thorough=False) or (
                _unpack(folder, spec, size, archive, unofficial) if archive else _draw(folder, spec, size)
            )
    if manifest.unofficial and not unofficial:
        raise _unofficial(archive or folder, manifest.source)
    return Dataset(folder, manifest)


def _current(folder: Path, archive: Path | None, thorough: bool) -> Manifest | None:
    """The manifest of a folder that is whole and of this archive; None when it has to be made."""
    try:
        manifest = read_json(folder / "manifest.json", Manifest)
    except BadInput:
        # Not unpacked yet, or by another version of the program.
        return None
    seen = manifest
    if archive is None:
        if manifest.source != synthetic.VERSION:
            return None
    elif archive.exists() and _stamp(archive) != manifest.archive:
        if file_digest(archive, "md5") != manifest.source:
            return None
        seen = msgspec.structs.replace(seen, archive=_stamp(archive))
    for name, digest in manifest.files.items():
        path = folder / name
        if not path.is_file():
            return None
        if thorough or _stamp(path) != manifest.stamps[name]:
            if sha256(path) != digest:
                say(f"{path}: its SHA-256 is not the manifest's; made again")
                return None
            seen = msgspec.structs.replace(seen, stamps=seen.stamps | {name: _stamp(path)})
    if seen != manifest:
        # Only saves the next hashing, so a folder that cannot be written is as good.
        with suppress(OSError):
            write_json(folder / "manifest.json", seen)
    return seen


def _unpack(folder: Path, spec: DatasetSpec, size: int, archive: Path, unofficial: bool) -> Manifest:
    get = f"`medserve data fetch {spec.name} --size {size}`"
    if not archive.is_file():
        raise BadInput(f"{archive}: no such file; get it by {get}, or set MEDMNIST_ROOT to the folder that has it")
    source = official(spec.name, size)
    try:
        wanted = arrays.check_members(archive)
        md5 = file_digest(archive, "md5")
        if md5 != source.md5 and not unofficial:
            raise _unofficial(archive, md5)
        with _room(folder, wanted), new_folder(folder) as partial:
            counts = arrays.unpack(archive, partial, size, source.classes)
            if md5 == source.md5 and counts != (expected := (spec.train, spec.val, spec.test)):
                raise BadInput(f"{archive}: has {counts} images a split; expected {expected}")
            return _manifest(partial, spec, size, source.classes, md5, md5 != source.md5, _stamp(archive))
    except arrays.DAMAGE as error:
        raise BadInput(f"{archive}: damaged, or not an npz archive ({error}); remove it and get it by {get}") from None


def _draw(folder: Path, spec: DatasetSpec, size: int) -> Manifest:
    with _room(folder, (spec.train + spec.val + spec.test) * size * size * 3), new_folder(folder) as partial:
        arrays.draw(partial, spec, size)
        return _manifest(partial, spec, size, tuple(synthetic.CLASSES), synthetic.VERSION, False, None)


def _manifest(
    folder: Path,
    spec: DatasetSpec,
    size: int,
    classes: tuple[str, ...],
    source: str,
    unofficial: bool,
    archive: tuple[int, int] | None,
) -> Manifest:
    """Digest the arrays of a new folder and write its manifest."""
    if len(classes) != spec.classes:
        raise CannotRun(f"{spec.name} has {len(classes)} class names; the table says {spec.classes} classes")
    files = sorted(folder.glob("*.npy"))
    manifest = Manifest(
        dataset=spec.name,
        size=size,
        classes=classes,
        source=source,
        unofficial=unofficial,
        archive=archive,
        files={path.name: sha256(path) for path in files},
        stamps={path.name: _stamp(path) for path in files},
    )
    write_json(folder / "manifest.json", manifest)
    return manifest


def _unofficial(path: Path, md5: str) -> BadInput:
    return BadInput(
        f"{path}: its MD5 {md5} is not the official archive's; to use it all the same add --unofficial "
        "(in a study: unofficial = true), and every result says so"
    )


def _stamp(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns


@contextmanager
def _room(folder: Path, wanted: int) -> Iterator[None]:
    """Refuse to begin what the disk cannot hold, and say so plainly when it fills up all the same."""
    free = shutil.disk_usage(folder.parent).free
    mend = "free some, or set MEDMNIST_ROOT to a folder on another disk"
    if free < wanted:
        raise CannotRun(f"{folder}: needs {wanted / MB:.0f} MB, the disk has {free / MB:.0f} MB free; {mend}")
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise CannotRun(f"{folder}: {error.strerror} while {wanted / MB:.0f} MB were written; {mend}") from None
