"""Image files of more than 8 bits become uint8 through a stated window, and never without one."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from medserve import image_files
from medserve.errors import BadInput

RAMP = np.arange(64, dtype=np.uint16).reshape(8, 8) * 64
"""Grey values from 0 to 4032."""
SHOWN = np.rint(np.clip(RAMP / 2048, 0, 1) * 255).astype(np.uint8)[..., None]
"""The same through the window 0:2048."""
WINDOW = (0.0, 2048.0)


def png(path: Path, values: NDArray[np.uint16], colour: int) -> Path:
    """A PNG of 16 bits per channel, which Pillow cannot write in colour. `colour` as in the PNG specification."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def tiff(path: Path, values: NDArray[np.uint16], photometric: int) -> Path:
    """An uncompressed TIFF of 16 bits per channel. `photometric`: 0 white is zero, 1 black is zero, 2 RGB."""
    height, width, channels = (*values.shape, 1)[:3]
    pixels = values.astype("<u2").tobytes()
    at = 8 + 2 + 10 * 12 + 4
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, 16 if channels == 1 else at)]
    tags += [(259, 3, 1, 1), (262, 3, 1, photometric), (273, 4, 1, at + 6), (277, 3, 1, channels)]
    tags += [(278, 4, 1, height), (279, 4, 1, len(pixels)), (284, 3, 1, 1)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    path.write_bytes(head + entries + bytes(4) + struct.pack("<HHH", 16, 16, 16) + pixels)
    return path


def dicom(path: Path, values: NDArray[np.integer], **changes: object) -> Path:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    made = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    bits = 8 * values.dtype.itemsize
    made.Rows, made.Columns, made.SamplesPerPixel = values.shape[0], values.shape[1], (*values.shape, 1)[2]
    made.BitsAllocated, made.BitsStored, made.HighBit = bits, bits, bits - 1
    made.PixelRepresentation = int(values.dtype.kind == "i")
    made.PhotometricInterpretation = "MONOCHROME2" if values.ndim == 2 else "RGB"
    if values.ndim == 3:
        made.PlanarConfiguration = 0
    made.PixelData = values.tobytes()
    for name, value in changes.items():
        setattr(made, name, value)
    made.save_as(path, enforce_file_format=True)
    return path


def test_sixteen_bits_are_read_through_the_window(tmp_path: Path) -> None:
    paths = [png(tmp_path / "a.png", RAMP, 0), tiff(tmp_path / "b.tif", RAMP, 1), dicom(tmp_path / "c.dcm", RAMP)]
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "d.tiff")
    Image.fromarray(RAMP.astype(np.int32)).save(tmp_path / "e.tiff")
    for path in (*paths, tmp_path / "d.tiff", tmp_path / "e.tiff"):
        assert image_files.shape(path, WINDOW) == (8, 8, 1)
        assert np.array_equal(image_files.read(path, WINDOW), SHOWN), path
        assert np.array_equal(image_files.read(path, WINDOW, 3), SHOWN.repeat(3, 2)), path
        for look in (image_files.read, image_files.shape):
            with pytest.raises(BadInput, match=rf"{path.name}: .* bits.*--window LOW:HIGH, in a study window = \[LOW"):
                look(path)


def test_zero_may_be_white(tmp_path: Path) -> None:
    found = image_files.read(tiff(tmp_path / "a.tif", RAMP, 0), WINDOW)
    assert np.array_equal(found, 255 - SHOWN)
    inverted = dicom(tmp_path / "a.dcm", RAMP, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(image_files.read(inverted, WINDOW), 255 - SHOWN)


@pytest.mark.parametrize("window", [None, WINDOW])
def test_sixteen_bits_in_colour_are_refused_and_never_cut(tmp_path: Path, window: image_files.Window | None) -> None:
    colour = np.stack([RAMP] * 3, -1)
    paths = [png(tmp_path / "a.png", colour, 2), tiff(tmp_path / "b.tif", colour, 2)]
    paths += [png(tmp_path / "c.png", colour[..., :2], 4), dicom(tmp_path / "d.dcm", colour)]
    for path in paths:
        for look in (image_files.read, image_files.shape):
            with pytest.raises(BadInput, match=r"more than 8 bits in colour or with|is RGB of 16 bits"):
                look(path, window)


def test_eight_bits_are_their_pixels_and_take_no_window(tmp_path: Path) -> None:
    grey = RAMP.astype(np.uint8)
    colour = np.stack([grey, grey.T, 255 - grey], -1)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(colour).save(tmp_path / "colour.png")
    dicom(tmp_path / "grey.dcm", grey)
    dicom(tmp_path / "colour.dcm", colour)
    for kind, pixels in (("grey", grey[..., None]), ("colour", colour)):
        for ending in (".png", ".dcm"):
            path = tmp_path / f"{kind}{ending}"
            assert np.array_equal(image_files.read(path), pixels)
            assert image_files.shape(path) == pixels.shape
            if path.name != "grey.dcm":
                with pytest.raises(BadInput, match=r"8 bits; a window is for files|in colour; a window is for grey"):
                    image_files.read(path, WINDOW)
    assert np.array_equal(image_files.read(tmp_path / "grey.dcm", (0.0, 255.0))[..., 0], grey)
    wide = dicom(tmp_path / "wide.dcm", grey.astype(np.uint16), BitsStored=8, HighBit=7)
    assert np.array_equal(image_files.read(wide)[..., 0], grey), "8 bits in two bytes"
    few = dicom(tmp_path / "few.dcm", grey >> 2, BitsStored=6, HighBit=5)
    assert np.array_equal(image_files.read(few, (0.0, 63.0))[..., 0], np.rint((grey >> 2) / 63 * 255))
    with pytest.raises(BadInput, match=r"few\.dcm: has grey values of 6 bits"):
        image_files.read(few)


HOUNSFIELD = {"RescaleSlope": 2.0, "RescaleIntercept": -1024.0}


def test_a_window_of_dicom_is_of_rescaled_values(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a.dcm", RAMP, **HOUNSFIELD)
    expected = np.rint(np.clip((RAMP * 2.0 - 1024 + 160) / 400, 0, 1) * 255)
    assert np.array_equal(image_files.read(path, (-160.0, 240.0))[..., 0], expected)
    signed = dicom(tmp_path / "b.dcm", RAMP.astype(np.int16) - 1000)
    assert np.array_equal(image_files.read(signed, (-1000.0, 1048.0)), SHOWN)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("rescaled", [{}, HOUNSFIELD, {"RescaleSlope": -1.0, "RescaleIntercept": 0.0}])
def test_the_window_of_the_file_is_that_of_the_standard(
    tmp_path: Path, function: str, rescaled: dict[str, float]
) -> None:
    """DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3, with the output range 0 to 255; the first of two windows."""
    x = RAMP * rescaled.get("RescaleSlope", 1.0) + rescaled.get("RescaleIntercept", 0.0)
    centre, width = float(np.median(x)), 1000.0
    windows = {"WindowCenter": [centre, 0.0], "WindowWidth": [width, 1.0], "VOILUTFunction": function}
    found = image_files.read(dicom(tmp_path / "a.dcm", RAMP, **windows, **rescaled), "file")[..., 0]
    share = {
        "LINEAR": (x - (centre - 0.5)) / (width - 1) + 0.5,
        "LINEAR_EXACT": (x - centre) / width + 0.5,
        "SIGMOID": 1 / (1 + np.exp(-4 * (x - centre) / width)),
    }[function]
    assert np.abs(found - np.clip(share, 0, 1) * 255).max() <= 0.5 + 1e-6


def test_a_window_of_the_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"a\.dcm: has no window of its own \(WindowCenter, WindowWidth\)"):
        image_files.read(dicom(tmp_path / "a.dcm", RAMP), "file")
    with pytest.raises(BadInput, match=r"a\.png: has no window of its own; state"):
        image_files.read(png(tmp_path / "a.png", RAMP, 0), "file")


def test_files_that_are_no_single_image_are_refused(tmp_path: Path) -> None:
    first, second = (Image.fromarray(np.full((8, 8), shade, np.uint8)) for shade in (1, 2))
    first.save(tmp_path / "two.tif", save_all=True, append_images=[second])
    with pytest.raises(BadInput, match=r"two\.tif: holds 2 images"):
        image_files.read(tmp_path / "two.tif")
    path = dicom(tmp_path / "two.dcm", np.concatenate([RAMP, RAMP]), Rows=8, NumberOfFrames=2)
    with pytest.raises(BadInput, match=r"two\.dcm: holds 2 frames"):
        image_files.read(path, WINDOW)
    with pytest.raises(BadInput, match=r"is PALETTE COLOR of 8 bits; expected MONOCHROME1"):
        image_files.read(dicom(tmp_path / "p.dcm", SHOWN[..., 0], PhotometricInterpretation="PALETTE COLOR"))
    with pytest.raises(BadInput, match=r"values that are not finite"):
        Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(tmp_path / "nan.tif")
        image_files.read(tmp_path / "nan.tif", WINDOW)
    whole = dicom(tmp_path / "whole.dcm", RAMP).read_bytes()
    for name, content in (("cut.dcm", whole[:-9]), ("text.dcm", b"text"), ("text.png", b"text")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput, match=rf"{name}: no image that can be read") as refused:
            image_files.read(tmp_path / name, WINDOW)
        assert len(refused.value.lines) == 1


def test_a_dicom_file_without_pixels_is_refused(tmp_path: Path) -> None:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made = FileDataset(str(tmp_path / "a.dcm"), Dataset(), file_meta=meta, preamble=bytes(128))
    made.save_as(tmp_path / "a.dcm")
    with pytest.raises(BadInput, match=r"a\.dcm: no image that can be read"):
        image_files.read(tmp_path / "a.dcm", WINDOW)


@pytest.mark.parametrize("ending", [".png", ".tif", ".dcm"])
@given(st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=4), st.booleans())
def test_a_damaged_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, ending: str, changes: list[tuple[int, int]], is_cut: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / f"damaged{ending}"
    make = {".png": lambda: png(path, RAMP, 0), ".tif": lambda: tiff(path, RAMP, 1), ".dcm": lambda: dicom(path, RAMP)}
    body = bytearray(make[ending]().read_bytes())
    for place, value in changes:
        body[place % len(body)] = value
    path.write_bytes(body[: changes[0][0] % len(body)] if is_cut else body)
    try:
        found = image_files.read(path, WINDOW)
    except BadInput:
        return
    assert found.dtype == np.uint8
    assert found.ndim == 3


@pytest.mark.parametrize(
    ("text", "window"), [("-1000:400", (-1000.0, 400.0)), ("0.5:1", (0.5, 1.0)), ("file", "file"), (None, None)]
)
def test_a_window_is_two_numbers_or_that_of_the_file(text: str | None, window: image_files.Window | None) -> None:
    assert image_files.parse_window(text) == window


@pytest.mark.parametrize("text", ["400", "a:b", "1:2:3", "", "400:-1000", "1:1", "nan:1", "0:inf"])
def test_no_window_is_one_line(text: str) -> None:
    with pytest.raises(BadInput, match=r"^(--)?window .*expected (LOW:HIGH, as in|two finite numbers)"):
        image_files.parse_window(text)
