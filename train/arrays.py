"""Write the arrays of a data set into a folder, from an npz archive or drawn, in constant memory.

`train.data` handles MD5s, manifests and root folders.
"""

import zipfile
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any, get_args

import numpy as np
from numpy.typing import NDArray

from medserve.errors import BadInput
from medserve.models import DatasetSpec, Split, Task
from medserve.progress import Progress
from medserve.store import CHUNK
from train import synthetic
from train.archives import MB

SPLITS: tuple[Split, ...] = get_args(Split)

DAMAGE_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)
"""The exceptions that reading a damaged archive raises."""


def check_members(archive: Path) -> int:
    """Bytes of the unpacked arrays. Raises BadInput for a missing array, one of DAMAGE_ERRORS for a damaged archive."""
    with zipfile.ZipFile(archive) as members:
        sizes = {info.filename: info.file_size for info in members.infolist()}
    required = [f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels")]
    for key in required:
        if f"{key}.npy" not in sizes:
            raise BadInput(f"{archive}: has no array {key!r}; expected MedMNIST's six: {', '.join(required)}")
    return sum(sizes[f"{key}.npy"] for key in required)


def unpack(
    archive: Path,
    folder: Path,
    size: int,
    classes: tuple[str, ...],
    channels: int = 3,
    task: Task = "multi-class",
) -> tuple[int, ...]:
    """Check the archive's arrays and write them into `folder`; returns the number of images per split.

    Raises BadInput that names the array and what was expected, one of DAMAGE_ERRORS for a damaged archive.
    """
    counts = []
    with zipfile.ZipFile(archive) as members:
        total = sum(members.getinfo(f"{split}_images.npy").file_size for split in SPLITS)
        progress = Progress(f"unpack {archive.name}", -(-total // MB), "MB")
        done = 0

        def chunks(file: IO[bytes]) -> Iterator[bytes]:
            nonlocal done
            while chunk := file.read(CHUNK):
                yield chunk
                done += len(chunk)
                progress.update(done // MB)

        for split in SPLITS:
            with members.open(f"{split}_images.npy") as file:
                shape, dtype = _header(file, members, archive)
                # MedMNIST stores one channel without a dimension of its own.
                full = (*shape, 1) if len(shape) == 3 else shape
                if dtype != np.uint8 or full[1:] != (size, size, channels):
                    expected = f"uint8 (n, {size}, {size}{f', {channels}' * (channels > 1)})"
                    raise BadInput(f"{archive}: {split}_images is {dtype} {shape}; expected {expected}")
                _write(folder / f"{split}_images.npy", full, np.uint8, chunks(file))
            with members.open(f"{split}_labels.npy") as file:
                labels = _labels(file, members, archive, shape[0], classes, task)
            _write(folder / f"{split}_labels.npy", labels.shape, np.int64, [labels.data])
            counts.append(shape[0])
        progress.update(progress.total)
    return tuple(counts)


def survey(archive: Path) -> tuple[int, int, int, Task]:
    """Side in pixels, channels, classes and task of an archive, by its training split; `unpack` checks all splits.

    Labels of shape (n, k) with k above 1 are several per image. Raises BadInput for images that are not square, one of
    DAMAGE_ERRORS for a damaged archive.
    """
    with zipfile.ZipFile(archive) as members:
        with members.open("train_images.npy") as file:
            shape, dtype = _header(file, members, archive)
        if dtype != np.uint8 or len(shape) not in (3, 4) or shape[1] != shape[2] or shape[3:] not in ((), (1,), (3,)):
            expected = "uint8 (n, side, side), or (n, side, side, 3)"
            raise BadInput(f"{archive}: train_images is {dtype} {shape}; expected {expected}")
        with members.open("train_labels.npy") as file:
            told, dtype = _header(file, members, archive)
            labels = np.frombuffer(file.read(), dtype) if dtype.kind in "iu" else np.zeros(1, np.int64)
    if len(told) == 2 and told[1] > 1:
        return shape[1], (*shape, 1)[3], told[1], "multi-label"
    # A label above the number of images leaves a class without images, which `unpack` refuses.
    return shape[1], (*shape, 1)[3], max(2, min(int(labels.max(initial=0)), len(labels)) + 1), "multi-class"


def groups(archive: Path, counts: tuple[int, ...]) -> dict[Split, NDArray[Any]]:
    """The group of each image, by split, from `{split}_groups` or from `groups` of train, val and test in turn.

    It is empty where the archive has none. Raises BadInput for arrays of another length or kind.
    """
    found: dict[str, NDArray[Any]] = {}
    with zipfile.ZipFile(archive) as members:
        asked = {"groups": sum(counts)} | {f"{split}_groups": n for split, n in zip(SPLITS, counts, strict=True)}
        for key, count in asked.items():
            if f"{key}.npy" in members.namelist():
                with members.open(f"{key}.npy") as file:
                    shape, dtype = _header(file, members, archive)
                    if shape not in ((count,), (count, 1)) or dtype.kind not in "iuU" or not dtype.itemsize:
                        expected = f"integers or text ({count},), one per image"
                        raise BadInput(f"{archive}: {key} is {dtype} {shape}; expected {expected}")
                    found[key] = np.frombuffer(file.read(), dtype)
    if "groups" in found:
        parts = np.split(found["groups"], np.cumsum(counts)[:-1])
        return dict(zip(SPLITS, parts, strict=True))
    if found and len(found) < len(SPLITS):
        raise BadInput(f"{archive}: has {', '.join(found)}; expected groups of every split")
    return {split: found[f"{split}_groups"] for split in SPLITS if found}


def write_split(folder: Path, split: Split, labels: NDArray[np.int64], images: Iterable[NDArray[np.uint8]]) -> None:
    """Write a split: int64 labels (n,), and as many uint8 images (H, W, C), one at a time."""
    images = iter(images)
    first = next(images)
    chunks = (np.ascontiguousarray(image).data for image in chain([first], images))
    _write(folder / f"{split}_images.npy", (len(labels), *first.shape), np.uint8, chunks)
    _write(folder / f"{split}_labels.npy", labels.shape, np.int64, [labels.data])


def draw(folder: Path, spec: DatasetSpec, size: int) -> None:
    """Draw all splits of the synthetic data set into `folder`."""
    counts = {split: spec.count(split) for split in SPLITS}
    progress = Progress(f"draw {spec.name} at {size} px", sum(counts.values()), "image")
    done = 0

    def chunks(cells: synthetic.Cells) -> Iterator[memoryview]:
        nonlocal done
        for images in synthetic.draw(cells, size):
            yield images.data
            done += len(images)
            progress.update(done)

    for split, count in counts.items():
        cells = synthetic.cells(split, count)
        _write(folder / f"{split}_images.npy", (count, size, size, 3), np.uint8, chunks(cells))
        _write(folder / f"{split}_labels.npy", (count,), np.int64, [cells.labels.data])


def _header(file: IO[bytes], members: zipfile.ZipFile, archive: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of an array in an archive. Raises BadInput for another format, order or length."""
    member = members.getinfo(file.name)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except (ValueError, TokenError) as error:
        # NumPy parses the header as Python source, so a damaged header can raise TokenError.
        raise BadInput(f"{archive}: {member.filename} is not a plain array: {error}") from None
    if fortran and len(shape) > 1:
        raise BadInput(f"{archive}: {member.filename} is in Fortran order; save it in C order")
    if file.tell() + prod(shape) * dtype.itemsize != member.file_size:
        size = member.file_size
        raise BadInput(f"{archive}: {member.filename} has {size} bytes, which is wrong for {dtype} {shape}")
    return shape, dtype


def _labels(
    file: IO[bytes], members: zipfile.ZipFile, archive: Path, count: int, classes: tuple[str, ...], task: Task
) -> NDArray[np.int64]:
    """int64 labels of a split with `count` images: (count,), or (count, classes) where the task is `multi-label`.

    Raises BadInput for labels out of range, and for a class that no image has, or of several labels every image.
    """
    name = file.name.removesuffix(".npy")
    shape, dtype = _header(file, members, archive)
    several = task == "multi-label"
    expected = f"({count}, {len(classes)}), 0 or 1 per class" if several else f"({count}, 1), one per image"
    if dtype.kind not in "iu" or shape not in ([(count, len(classes))] if several else [(count,), (count, 1)]):
        raise BadInput(f"{archive}: {name} is {dtype} {shape}; expected integers {expected}")
    if not count:
        raise BadInput(f"{archive}: {name} is empty; expected at least one image of each class")
    labels = np.frombuffer(file.read(), dtype).astype(np.int64)
    highest = 1 if several else len(classes) - 1
    if not 0 <= labels.min() <= labels.max() <= highest:
        raise BadInput(f"{archive}: {name} holds {labels.min()} to {labels.max()}; expected 0 to {highest}")
    labels = labels.reshape(shape) if several else labels
    for index, images in enumerate(labels.sum(0) if several else np.bincount(labels, minlength=len(classes))):
        if not images:
            raise BadInput(f"{archive}: {name} has no image of class {index} ({classes[index]})")
        if several and images == count:
            raise BadInput(f"{archive}: {name} has no image without class {index} ({classes[index]})")
    return labels


def _write(path: Path, shape: tuple[int, ...], dtype: type[np.generic], chunks: Iterable[memoryview | bytes]) -> None:
    # A full disk raises OSError here; with a memory-mapped file it would be a SIGBUS.
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in chunks:
            file.write(chunk)
