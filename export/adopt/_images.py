"""The images on which an adopted model's own scores are the reference: a folder, an .npy, an .npz, or a data set."""

from pathlib import Path
from typing import NamedTuple, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from medserve import image_files, stage
from medserve.errors import BadInput
from medserve.jobs import Prepared
from medserve.models import Split
from medserve.spec import Window
from medserve.tables import DATASETS

KEYS = (("test_images", "test_labels"), ("images", "labels"))
"""Of an .npz: those of MedMNIST, or plain ones."""


class Given(NamedTuple):
    """uint8 (N, H, W, C) images, their labels and the names of the classes, null where they are not known.

    Labels are int64 (N,), or 0 or 1 (N, classes) with several per image. Classes are `named` by the folders of images,
    whose order is not the model's.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] | None = None
    named: bool = False


def read(source: str, size: int | None, channels: int, window: Window | None = None) -> Given:
    """The images of a folder (of images, or of a folder per class), of a file, or of a data set's test split.

    Of a folder with train, val and test those of the last; files of more than 8 bits are read through `window`. Raises
    BadInput for what is not such images: of mixed sizes, of other channels, labels out of their range.
    """
    path = Path(source)
    if source not in DATASETS and not path.exists():
        raise BadInput(f"{source}: no such folder or file; or one of the data sets {', '.join(DATASETS)}")
    if window is not None and (source in DATASETS or not path.is_dir()):
        raise BadInput(f"{source}: a window is for a folder of image files; arrays must be uint8")
    if source in DATASETS:
        given = _of_data_set(source, size)
    elif path.is_dir():
        given = _of_folder(path, channels, window)
    elif path.suffix in (".npy", ".npz"):
        given = _of_file(path)
    else:
        raise BadInput(
            f"{source}: no images; expected a folder, .npy, .npz, or one of the data sets {', '.join(DATASETS)}"
        )
    images = given.images[..., None] if given.images.ndim == 3 else given.images
    if images.ndim != 4 or images.dtype != np.uint8 or not len(images):
        raise BadInput(f"{source}: {images.dtype} {images.shape}; expected images as uint8 (N, H, W, C)")
    if images.shape[1] != images.shape[2]:
        raise BadInput(f"{source}: images of {images.shape[2]} x {images.shape[1]} px; expected square ones")
    if images.shape[3] != channels:
        raise BadInput(f"{source}: images of {images.shape[3]} channels; the model takes {channels} (--channels)")
    if size is not None and images.shape[1] != size:
        raise BadInput(f"{source}: images of {images.shape[1]} px; the model takes {size} px: resize them first")
    if given.labels is not None and (len(given.labels) != len(images) or given.labels.ndim > 2):
        expected = f"({len(images)},), one per image, or ({len(images)}, classes), 0 or 1 per class"
        raise BadInput(f"{source}: labels of shape {given.labels.shape}; expected {expected}")
    return given._replace(images=np.ascontiguousarray(images))


def _of_data_set(name: str, size: int | None) -> Given:
    if size is None:
        raise BadInput(f"{name} comes at several sizes; give --size")
    prepared = msgspec.json.decode(
        stage.ask(["-m", "train", "data", "prepare", name, "--size", str(size), "--json", "--unofficial"]),
        type=Prepared,
    )
    folder = Path(prepared.folder)
    return Given(np.load(folder / "test_images.npy"), np.load(folder / "test_labels.npy"), prepared.classes)


def _of_folder(path: Path, channels: int, window: Window | None) -> Given:
    if all((path / split).is_dir() for split in get_args(Split)):
        path /= "test"
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in image_files.ENDINGS)
    if not files:
        raise BadInput(f"{path}: holds no images ({', '.join(image_files.ENDINGS)})")
    depths = {len(file.relative_to(path).parts) for file in files}
    classes = tuple(sorted({file.relative_to(path).parts[0] for file in files})) if depths == {2} else None
    labels = [classes.index(file.relative_to(path).parts[0]) for file in files] if classes else None
    images: list[NDArray[np.uint8]] = []
    for file in files:
        images.append(image_files.read(file, window, channels))
        if images[-1].shape != images[0].shape:
            raise BadInput(
                f"{file}: {images[-1].shape[1]} x {images[-1].shape[0]} px, and {files[0]} has "
                f"{images[0].shape[1]} x {images[0].shape[0]}; expected images of one size"
            )
    return Given(np.stack(images), None if labels is None else np.array(labels), classes, named=classes is not None)


def _of_file(path: Path) -> Given:
    try:
        loaded = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: no arrays of NumPy: {error}") from None
    if isinstance(loaded, np.ndarray):
        return Given(loaded)
    for images, labels in KEYS:
        if images in loaded:
            known = loaded.get(labels)
            if known is not None and known.ndim == 2 and known.shape[1] == 1:
                known = known[:, 0]
            return Given(loaded[images], None if known is None else known.astype(np.int64))
    raise BadInput(f"{path}: has {', '.join(loaded)}; expected {' or '.join(images for images, _ in KEYS)}")
