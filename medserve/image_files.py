"""Image files as uint8 pixels: the usual formats by Pillow, DICOM by pydicom (the extra `dicom`).

Grey values of more than 8 bits become 8 bits through a window that the user states. Without one they are refused,
because the bits that a conversion drops may be those that show the finding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from medserve import plugins
from medserve.errors import BadInput, CannotRun
from medserve.spec import Window, check_window

DICOM = ".dcm"
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", DICOM)
MEND = "state the values that become 0 and 255: --window LOW:HIGH, in a study window = [LOW, HIGH]"
_FAR = 100.0
"""Window widths from the centre, where each window function has reached its lowest or highest value."""


def parse_window(text: str | None) -> Window | None:
    """A window as `LOW:HIGH` or `file`. Raises BadInput."""
    if text is None:
        return None
    if text == "file":
        return "file"
    low, colon, high = text.partition(":")
    try:
        window = (float(low), float(high))
    except ValueError:
        colon = ""
    if not colon:
        raise BadInput(f"--window {text}: expected LOW:HIGH, as in -1000:400, or file")
    check_window(window)
    return window


def shape(path: Path, window: Window | None = None) -> tuple[int, int, int]:
    """Height and width in pixels, and channels (1 or 3) of an image file, whose pixels are not decoded.

    Raises BadInput for a file that `read` refuses, as far as its header says so.
    """
    with _named(path):
        if path.suffix.lower() == DICOM:
            header = _open_dicom(path, window, with_pixels=False)
            return header.Rows, header.Columns, header.SamplesPerPixel
        with Image.open(path) as image:
            _check(image, window)
            return image.height, image.width, _channels(image)


def read(path: Path, window: Window | None = None, channels: int | None = None) -> NDArray[np.uint8]:
    """The pixels of an image file, uint8 (H, W, C), with the file's own channels or as many as asked for.

    Raises BadInput for a file that is damaged or has several images, for more than 8 bits without a window, and for a
    window where there are only 8 bits.
    """
    with _named(path):
        if path.suffix.lower() == DICOM:
            image = Image.fromarray(_dicom_pixels(_open_dicom(path, window), window))
        else:
            with Image.open(path) as opened:
                _check(opened, window)
                image = eight_bits(opened, window)
                image.load()
        wanted = channels or _channels(image)
        return np.asarray(image.convert("L" if wanted == 1 else "RGB")).reshape(image.height, image.width, wanted)


def eight_bits(image: Image.Image, window: Window | None, mend: str = MEND) -> Image.Image:
    """The image itself where it has 8 bits, else its grey values through the window.

    Raises BadInput without a window, with how to `mend` that, and for more than 8 bits in colour.
    """
    if not _is_deep(image):
        return image
    if image.mode.startswith(("RGB", "LA")):
        raise BadInput("more than 8 bits in colour or with transparency; write it in 8 bits, or in grey without it")
    if window is None or window == "file":
        kind = "has no window of its own" if window else "has grey values of more than 8 bits"
        raise BadInput(f"{kind}; {mend}")
    inverted = isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(262) == 0
    pixels = _through(np.asarray(image), window)
    return Image.fromarray(255 - pixels if inverted else pixels)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the file in every refusal."""
    try:
        yield
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None
    except UnidentifiedImageError:
        raise BadInput(f"{path}: no image that can be read; expected one of {', '.join(ENDINGS)}") from None
    except CannotRun:
        raise
    except Exception as error:  # decoders raise anything over damaged bytes
        raise BadInput(f"{path}: no image that can be read: {error}") from None


def _check(image: Image.Image, window: Window | None) -> None:
    if (count := getattr(image, "n_frames", 1)) > 1:
        raise BadInput(f"holds {count} images; expected one per file")
    if _is_deep(image):
        if window is None or window == "file" or image.mode.startswith(("RGB", "LA")):
            eight_bits(image, window)
    elif window is not None:
        raise BadInput("has 8 bits; a window is for files of more, and bits must not be mixed")


def _channels(image: Image.Image) -> int:
    return 1 if image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I") else 3


def _is_deep(image: Image.Image) -> bool:
    """Whether a file that is not decoded yet has more than 8 bits per channel.

    Pillow opens colour of 16 bits as `RGB` and drops the low bytes.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        return True
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return bool(max(image.tag_v2.get(258, (1,))) > 8)
    return isinstance(image, PngImagePlugin.PngImageFile) and any(";16" in str(tile[3]) for tile in image.tile)


def _through(values: NDArray[Any], window: tuple[float, ...]) -> NDArray[np.uint8]:
    """Grey values as uint8: linear from `low` as 0 to `high` as 255, rounded, clipped outside."""
    low, high = window
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        # A table takes a sixteenth of the memory, which a server bounds.
        shown: NDArray[np.uint8] = _through(np.arange(1 << 16), window)[values]
        return shown
    if not np.isfinite(values).all():
        raise BadInput("has values that are not finite")
    return np.rint(np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def _open_dicom(path: Path, window: Window | None, *, with_pixels: bool = True) -> Any:
    """The data set of a file with one image. Raises BadInput for other kinds, and where the window is missing."""
    pydicom = plugins.need("pydicom", "reading DICOM (the extra `dicom`)")
    found = pydicom.dcmread(path, stop_before_pixels=not with_pixels)
    kind, frames = found.PhotometricInterpretation, int(found.get("NumberOfFrames") or 1)
    if frames > 1:
        raise BadInput(f"holds {frames} frames; expected one per file")
    is_grey, bits = kind in ("MONOCHROME1", "MONOCHROME2"), found.BitsStored
    if not is_grey and (bits > 8 or not kind.startswith(("RGB", "YBR"))):
        raise BadInput(f"is {kind} of {bits} bits; expected MONOCHROME1, MONOCHROME2, or RGB or YBR of 8 bits")
    if not is_grey and window is not None:
        raise BadInput("is in colour; a window is for grey values, so leave it out for these files")
    if is_grey and window is None and (bits != 8 or found.PixelRepresentation or _is_rescaled(found)):
        raise BadInput(f"has grey values of {bits} bits or with a rescale slope; {MEND}; or file: the file's own")
    if window == "file" and not (found.get("WindowWidth") and "WindowCenter" in found):
        raise BadInput(f"has no window of its own (WindowCenter, WindowWidth); {MEND}")
    return found


def _is_rescaled(found: Any) -> bool:
    return "ModalityLUTSequence" in found or "RescaleSlope" in found


def _dicom_pixels(found: Any, window: Window | None) -> NDArray[np.uint8]:
    """uint8 (H, W) or (H, W, 3): DICOM PS3.3 C.11, modality LUT or rescale, then the window; MONOCHROME1 inverted."""
    pixels = plugins.need("pydicom.pixels", "reading DICOM")
    values = pixels.pixel_array(found)
    if window == "file":
        # The first of several windows. Its function may be linear, exactly linear or a sigmoid.
        centre, width = (float(np.atleast_1d(found[name].value)[0]) for name in ("WindowCenter", "WindowWidth"))
        ends = np.array([centre - _FAR * width, centre + _FAR * width])
        low, high = pixels.apply_windowing(ends, found)
        values = _through(pixels.apply_windowing(pixels.apply_modality_lut(values, found), found), (low, high))
    elif window is not None:
        values = _through(pixels.apply_modality_lut(values, found), window)
    shown: NDArray[np.uint8] = values.astype(np.uint8)
    return 255 - shown if found.PhotometricInterpretation == "MONOCHROME1" else shown
