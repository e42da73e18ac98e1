"""Image files as people have them: PNG, JPEG or WebP to the pixels that the model takes."""

import io
import warnings
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin, PngImagePlugin, UnidentifiedImageError, WebPImagePlugin

from medserve.errors import BadInput

# Pillow would import its decoders with the first image, in a request.
FORMATS = (
    PngImagePlugin.PngImageFile.format,
    JpegImagePlugin.JpegImageFile.format,
    WebPImagePlugin.WebPImageFile.format,
)
LARGEST = 4096
"""Pixels of a side, above which an image is not decoded: its bytes may be few, its pixels not."""
LARGEST_FILE = 16 << 20
"""Bytes of a file."""


class File(NamedTuple):
    """A decoded file: uint8 (1, H, W, 3), and its own (width, height) where it had to be resized."""

    images: NDArray[np.uint8]
    resized_from: tuple[int, int] | None
    within: int | None = None


def decode(body: bytes, shape: tuple[int, int, int]) -> File:
    """One image file as what the model takes, `shape` (H, W, 3).

    Of an animation the first frame; transparency is left out. Raises BadInput for anything else.
    """
    height, width, _ = shape
    try:
        with warnings.catch_warnings():
            # Pillow warns of what it takes for bombs and of odd metadata; the size is looked at before any decoding.
            warnings.simplefilter("ignore")
            image: Image.Image = Image.open(io.BytesIO(body), formats=FORMATS)
            if max(image.size) > LARGEST:
                raise BadInput(f"the image is {image.width} x {image.height} px; expected at most {LARGEST} a side")
            if image.mode.startswith("I"):
                # Pillow would cut sixteen bits off at 255, and make microscopy white.
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            pixels = image.convert("RGB")
    except BadInput:
        raise
    except UnidentifiedImageError:
        raise BadInput("the body is no image; expected a PNG, JPEG or WebP file") from None
    except Exception as error:  # decoders raise anything over damaged bytes
        raise BadInput(f"the image cannot be decoded: {error}"[:500]) from None
    resized = None
    if pixels.size != (width, height):
        resized = pixels.size
        pixels = pixels.resize((width, height), Image.Resampling.BILINEAR)
    return File(np.asarray(pixels)[None], resized)


def encode(
    model: str, version: str, classes: tuple[str, ...], scores: NDArray[np.float32], file: File
) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """ASGI headers (without Content-Length) and body: the classes with their probabilities, the likeliest first."""
    (row,) = scores.tolist()
    ranked = sorted(zip(classes, row, strict=True), key=lambda one: -one[1])
    answer = {
        "model_name": model,
        "model_version": version,
        "classes": [{"name": name, "probability": probability} for name, probability in ranked],
        "resized_from": file.resized_from,
    }
    return [(b"content-type", b"application/json")], msgspec.json.encode(answer)
