"""Filling a folder with a data set's arrays, from an npz archive or from the drawing, in constant memory.

Nothing here knows of MD5s, manifests or root folders.
"""

import zipfile
import zlib
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any, get_args

import numpy as np
from numpy.typing import NDArray

from medserve.errors import BadInput
from medserve.progress import Progress
from medserve.spec import DatasetSpec, Split
from medserve.store import CHUNK
from train import synthetic
from train.archives import MB

SPLITS: tuple[Split, ...] = get_args(Split)

DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)
"""What reading a damaged archive raises."""


def check_members(archive: Path) -> int:
    """Bytes that the archive's arrays need unpacked. Raises BadInput for a missing array, DAMAGE for a broken file."""
    with zipfile.ZipFile(archive) as members:
        sizes = {info.filename: info.file_size for info in members.infolist()}
    wanted = [f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels")]
    for key in wanted:
        if f"{key}.npy" not in sizes:
            raise BadInput(f"{archive}: has no array {key!r}; expected MedMNIST's six: {', '.join(wanted)}")
    return sum(sizes[f"{key}.npy"] for key in wanted)


def unpack(archive: Path, folder: Path, size: int, classes: tuple[str, ...]) -> tuple[int, ...]:
    """Stream the archive's members into `folder`, checking them; returns the images a split.

    Raises BadInput that names the array and what was expected, DAMAGE for a broken file.
    """
    counts = []
    with zipfile.ZipFile(archive) as members:
        total = sum(members.getinfo(f"{split}_images.npy").file_size for split in SPLITS)
        progress = Progress(f"unpack {archive.name}", -(-total // MB), "MB")
        done = 0

        def pieces(file: IO[bytes]) -> Iterator[bytes]:
            nonlocal done
            while piece := file.read(CHUNK):
                yield piece
                done += len(piece)
                progress.update(done // MB)

        for split in SPLITS:
            with members.open(f"{split}_images.npy") as file:
                shape, dtype = _header(file, members, archive)
                if dtype != np.uint8 or len(shape) != 4 or shape[1:] != (size, size, 3):
                    gray = " (grey images are not supported)" if shape[1:] in ((size, size), (size, size, 1)) else ""
                    expected = f"uint8 (n, {size}, {size}, 3)"
                    raise BadInput(f"{archive}: {split}_images is {dtype} {shape}; expected {expected}{gray}")
                _write(folder / f"{split}_images.npy", shape, np.uint8, pieces(file))
            with members.open(f"{split}_labels.npy") as file:
                labels = _labels(file, members, archive, shape[0], classes)
            _write(folder / f"{split}_labels.npy", labels.shape, np.int64, [labels.data])
            counts.append(shape[0])
        progress.update(progress.total)
    return tuple(counts)


def draw(folder: Path, spec: DatasetSpec, size: int) -> None:
    """Draw all splits of the synthetic set into `folder`."""
    counts = {split: spec.count(split) for split in SPLITS}
    progress = Progress(f"draw {spec.name} at {size} px", sum(counts.values()), "image")
    done = 0

    def pieces(cells: synthetic.Cells) -> Iterator[memoryview]:
        nonlocal done
        for images in synthetic.draw(cells, size):
            yield images.data
            done += len(images)
            progress.update(done)

    for split, count in counts.items():
        cells = synthetic.cells(split, count)
        _write(folder / f"{split}_images.npy", (count, size, size, 3), np.uint8, pieces(cells))
        _write(folder / f"{split}_labels.npy", (count,), np.int64, [cells.labels.data])


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype at the head of an .npy stream. Raises ValueError when it is none, or in Fortran order."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if fortran and len(shape) > 1:
        raise ValueError("it is in Fortran order; save it in C order")
    return shape, dtype


def _header(file: IO[bytes], members: zipfile.ZipFile, archive: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    member = members.getinfo(file.name)
    try:
        shape, dtype = read_header(file)
    except (ValueError, TokenError) as error:
        # NumPy parses a header as Python, and a damaged one can fail as that.
        raise BadInput(f"{archive}: {member.filename} is not a plain array: {error}") from None
    if file.tell() + prod(shape) * dtype.itemsize != member.file_size:
        raise BadInput(f"{archive}: {member.filename} has {member.file_size} bytes; not what {dtype} {shape} needs")
    return shape, dtype


def _labels(
    file: IO[bytes], members: zipfile.ZipFile, archive: Path, count: int, classes: tuple[str, ...]
) -> NDArray[np.int64]:
    """The labels of a split of `count` images: every one in range, every class at least once."""
    name = file.name.removesuffix(".npy")
    shape, dtype = _header(file, members, archive)
    if dtype.kind not in "iu" or shape not in ((count,), (count, 1)):
        raise BadInput(f"{archive}: {name} is {dtype} {shape}; expected integers ({count}, 1), one an image")
    if not count:
        raise BadInput(f"{archive}: {name} is empty; expected at least one image of each class")
    labels = np.frombuffer(file.read(), dtype).astype(np.int64)
    if not 0 <= labels.min() <= labels.max() < len(classes):
        raise BadInput(f"{archive}: {name} holds {labels.min()} to {labels.max()}; expected 0 to {len(classes) - 1}")
    for index, images in enumerate(np.bincount(labels, minlength=len(classes))):
        if not images:
            raise BadInput(f"{archive}: {name} has no image of class {index} ({classes[index]})")
    return labels


def _write(path: Path, shape: tuple[int, ...], dtype: type[np.generic], pieces: Iterable[memoryview | bytes]) -> None:
    # Written, not mapped: a full disk is then an error and not a SIGBUS.
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for piece in pieces:
            file.write(piece)
