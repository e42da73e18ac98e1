"""The images on which an adopted model's own scores are the reference: a folder, an .npy, an .npz, or a data set."""

from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from medserve import stage
from medserve.errors import BadInput
from medserve.jobs import Prepared
from medserve.tables import DATASETS

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
KEYS = (("test_images", "test_labels"), ("images", "labels"))
"""Of an .npz: those of MedMNIST, or plain ones."""


class Given(NamedTuple):
    """uint8 (N, H, W, C) images, int64 (N,) labels and the names of the classes, null where they are not known."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] | None = None


def read(source: str, size: int | None, channels: int) -> Given:
    """The images of a folder (of images, or of a folder per class), of a file, or of a data set's test split.

    Raises BadInput for what is not such images: of mixed sizes, of other channels, labels out of their range.
    """
    path = Path(source)
    if source in DATASETS:
        given = _of_data_set(source, size)
    elif path.is_dir():
        given = _of_folder(path, channels)
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
    if given.labels is not None and given.labels.shape != (len(images),):
        raise BadInput(f"{source}: labels of shape {given.labels.shape}; expected ({len(images)},), one per image")
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


def _of_folder(path: Path, channels: int) -> Given:
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in ENDINGS)
    if not files:
        raise BadInput(f"{path}: holds no images ({', '.join(ENDINGS)})")
    depths = {len(file.relative_to(path).parts) for file in files}
    classes = tuple(sorted({file.relative_to(path).parts[0] for file in files})) if depths == {2} else None
    labels = [classes.index(file.relative_to(path).parts[0]) for file in files] if classes else None
    images: list[NDArray[np.uint8]] = []
    for file in files:
        try:
            with Image.open(file) as image:
                if image.mode.startswith("I"):
                    raise BadInput(
                        f"{file}: an image of 16 bits; write it in 8 bits, through the window that you choose"
                    )
                images.append(np.asarray(image.convert("L" if channels == 1 else "RGB")))
        except (UnidentifiedImageError, OSError) as error:
            raise BadInput(f"{file}: no image that can be read: {error}") from None
        if images[-1].shape != images[0].shape:
            raise BadInput(
                f"{file}: {images[-1].shape[1]} x {images[-1].shape[0]} px, and {files[0]} has "
                f"{images[0].shape[1]} x {images[0].shape[0]}; expected images of one size"
            )
    return Given(np.stack(images), None if labels is None else np.array(labels), classes)


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
