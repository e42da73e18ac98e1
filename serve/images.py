"""Image files: PNG, JPEG or WebP to the pixels that the model takes."""

import io
import warnings
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin, PngImagePlugin, UnidentifiedImageError, WebPImagePlugin

from medserve.errors import BadInput
from medserve.image_files import eight_bits
from medserve.models import Task
from medserve.scores import THRESHOLD
from medserve.spec import Window

# Pillow would import its decoders with the first image, in a request.
FORMATS = (
    PngImagePlugin.PngImageFile.format,
    JpegImagePlugin.JpegImageFile.format,
    WebPImagePlugin.WebPImageFile.format,
)
LARGEST = 4 << 20
"""Pixels, above which an image is not decoded: its file may be small, its pixels are not."""
LARGEST_FILE = 16 << 20
"""Bytes of a file."""
PEAK_BYTES = 2 * LARGEST_FILE + 8 * LARGEST
"""Bytes that the largest file takes while it is decoded: itself twice, and its pixels in two modes."""
NO_WINDOW = "the model states no window for them, so send 8 bits"
SCANS = 64
SCANNED = 16 * LARGEST
"""Scans of a JPEG, and pixels of all of them, above which it is not decoded. Usual progressive ones have about ten."""

SCAN = b"\xff\xda"
"""The marker at which a scan of a JPEG begins."""
PARTS = 8192
"""Chunks or segments of a file, above which it is not opened: Pillow and libwebp keep each of them."""

# Compressed text and colour profiles of a PNG: Pillow's own limit for all of them is 64 MiB.
PngImagePlugin.MAX_TEXT_MEMORY = 4 << 20


class File(NamedTuple):
    """A decoded file: uint8 (1, H, W, C), and its own (width, height) where it was resized."""

    images: NDArray[np.uint8]
    resized_from: tuple[int, int] | None
    timeout_ns: int | None = None


def decode(body: bytes, shape: tuple[int, int, int], window: Window | None = None) -> File:
    """One image file as what the model takes, `shape` (H, W, C): in colour, or in grey where C is 1.

    Grey values of more than 8 bits pass through the window by which the model's own images were read. Of an animation
    the first frame; transparency is left out. Raises BadInput for anything else.
    """
    height, width, channels = shape
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images and of odd metadata; the size is checked before anything is decoded.
            warnings.simplefilter("ignore")
            _check_parts(body)
            image: Image.Image = Image.open(io.BytesIO(body), formats=FORMATS)
            _check_cost(image, body)
            pixels = eight_bits(image, window, NO_WINDOW).convert("L" if channels == 1 else "RGB")
    except BadInput:
        raise
    except UnidentifiedImageError:
        form = body[:2] == b"--" and b"content-disposition" in body[:1000].lower()
        mend = "; this is a form: send the file itself, as `curl --data-binary @FILE` does" if form else ""
        raise BadInput(f"the body is no image; expected a PNG, JPEG or WebP file{mend}") from None
    except Exception as error:  # decoders raise anything over damaged bytes
        raise BadInput(f"the image cannot be decoded: {error}"[:500]) from None
    resized = None
    if pixels.size != (width, height):
        resized = pixels.size
        pixels = pixels.resize((width, height), Image.Resampling.BILINEAR)
    return File(np.asarray(pixels).reshape(1, height, width, channels), resized)


def _check_parts(body: bytes) -> None:
    """Raise BadInput for very many chunks (PNG, WebP), or segments and stray bytes before the first scan (JPEG)."""
    at, length, parts = {b"\x89P": 8, b"\xff\xd8": 2, b"RI": 12}.get(body[:2], len(body)), len(body), 0
    while at < length and parts <= PARTS:
        parts += 1
        if body[0] == 0x89:
            at += 12 + int.from_bytes(body[at : at + 4], "big")
        elif body[0] != 0xFF:
            size = int.from_bytes(body[at + 4 : at + 8], "little")
            at += 8 + size + size % 2
        elif body[at : at + 2] == SCAN:
            return
        else:
            # As Pillow reads it: only a segment that it has a handler for is skipped as a whole.
            _, _, handler = JpegImagePlugin.MARKER.get(int.from_bytes(body[at : at + 2], "big"), ("", "", False))
            at += 2 + max(2, int.from_bytes(body[at + 2 : at + 4], "big")) if handler else 1
    if parts > PARTS:
        raise BadInput(f"the image file has more than {PARTS} chunks or segments; write it again with fewer")


def _check_cost(image: Image.Image, body: bytes) -> None:
    """Raise BadInput for an image that would take too much memory or time to decode."""
    count = image.width * image.height
    if count > LARGEST:
        raise BadInput(f"the image is {image.width} x {image.height} px; expected at most {LARGEST:,} pixels")
    # In the compressed data of a scan an escape follows each 0xFF.
    scans = body.count(SCAN) if isinstance(image, JpegImagePlugin.JpegImageFile) else 1
    if scans > SCANS or scans * count > SCANNED:
        raise BadInput(
            f"the JPEG has {scans} scans of {image.width} x {image.height} px; expected at most {SCANS} scans, "
            f"and {SCANNED:,} pixels in all of them"
        )


def encode(
    model: str, version: str, classes: tuple[str, ...], task: Task, scores: NDArray[np.float32], file: File
) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """ASGI headers (without Content-Length) and body: `classes` with their probabilities, the likeliest first.

    Where the task is `multi-label` they are `labels`, none of which excludes another, each with its own decision.
    """
    (row,) = scores.tolist()
    ranked = sorted(zip(classes, row, strict=True), key=lambda pair: -pair[1])
    named: list[dict[str, Any]] = [{"name": name, "probability": probability} for name, probability in ranked]
    key = "classes"
    if task == "multi-label":
        key, named = "labels", [one | {"applies": one["probability"] > THRESHOLD} for one in named]
    answer = {
        "model_name": model,
        "model_version": version,
        "task": task,
        key: named,
        "resized_from": file.resized_from,
    }
    return [(b"content-type", b"application/json")], msgspec.json.encode(answer)
