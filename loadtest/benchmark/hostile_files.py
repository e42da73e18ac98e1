"""Image files that cost a decoder much more time or memory than their bytes suggest."""

import io
import zlib

from PIL import Image

SIGNATURE_AND_HEADER = 33
"""Bytes of a PNG before its further chunks."""


def progressive_jpeg(side: int, scans: int) -> bytes:
    """A flat grey progressive JPEG of `side` px in at least six scans, the last of which is repeated."""
    file = io.BytesIO()
    Image.new("L", (side, side), 100).save(file, "JPEG", progressive=True)
    whole = file.getvalue()
    start_of_scan = b"\xff\xda"
    repeated = whole[whole.rindex(start_of_scan) : -2]
    return whole[:-2] + repeated * (scans - whole.count(start_of_scan)) + whole[-2:]


def flat_png(side: int) -> bytes:
    """A black PNG of `side` px in colour."""
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, "PNG", compress_level=9)
    return file.getvalue()


def png_with_texts(count: int) -> bytes:
    """A PNG of 28 px with `count` compressed texts of 2**20 bytes each (iTXt, PNG specification 11.3.3.4)."""
    text = zlib.compress(b"\xf0\x9f\x98\x80" + b"a" * ((1 << 20) - 4), 9)
    whole = flat_png(28)
    texts = b"".join(_png_chunk(b"iTXt", b"key%d\0\1\0\0\0" % number + text) for number in range(count))
    return whole[:SIGNATURE_AND_HEADER] + texts + whole[SIGNATURE_AND_HEADER:]


def png_with_chunks(size: int) -> bytes:
    """A PNG of 28 px and at most `size` bytes, filled with private chunks without content."""
    whole, empty = flat_png(28), _png_chunk(b"abCd", b"")
    return whole[:SIGNATURE_AND_HEADER] + empty * ((size - len(whole)) // len(empty)) + whole[SIGNATURE_AND_HEADER:]


def jpeg_with_segments(size: int) -> bytes:
    """A JPEG of 64 px and at most `size` bytes, filled with application segments without content."""
    whole, empty = progressive_jpeg(64, 6), b"\xff\xe5\0\2"
    return whole[:2] + empty * ((size - len(whole)) // len(empty)) + whole[2:]


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")
