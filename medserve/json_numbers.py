"""JSON lists of numbers as arrays."""

from math import prod
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from medserve.errors import BadInput

BLOCK = 1 << 16
"""Characters of JSON numbers that are decoded at a time; they fit into the processor's cache."""
_decode_rows = msgspec.json.Decoder(list[Any]).decode


def decode(text: msgspec.Raw, shape: tuple[int, ...], dtype: np.dtype[Any], what: str) -> NDArray[Any]:
    """The numbers of a JSON list, flat; the list is flat or nested like `shape`.

    Unsigned types take whole numbers from 0 to 255, others any number that they can hold. Raises BadInput, which calls
    the list `what`, for anything else.
    """
    if dtype.kind == "u":
        return _whole_numbers(bytes(text), shape, what)
    count = prod(shape)
    try:
        values = np.asarray(_decode_rows(text))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadInput(f"{what} is not a list of numbers: {error}") from None
    if values.dtype.kind not in "if":
        raise BadInput(f"{what} must hold numbers")
    if values.size != count or (values.ndim > 1 and values.shape != shape):
        raise BadInput(f"{what} has shape {list(values.shape)}; expected {list(shape)} or flat")
    with np.errstate(over="ignore"):
        numbers = values.astype(dtype).ravel()
    if not np.isfinite(numbers).all():
        raise BadInput(f"{what} has a number that {dtype} cannot hold")
    return numbers


def _whole_numbers(text: bytes, shape: tuple[int, ...], what: str) -> NDArray[np.uint8]:
    """Decode whole numbers from 0 to 255, flat or nested like the tensor's shape, by array operations on their text.

    Python's list of numbers would take five times as long, and for a hostile request an unlimited amount of memory.
    """
    count = prod(shape)
    # The text is valid JSON, so between brackets and commas there are numbers only, or characters that remain here.
    skeleton = text.translate(None, b"0123456789 \n\r\t")
    if skeleton not in (_brackets((count,)), _brackets(shape)):
        if skeleton.translate(None, b"[],"):
            raise BadInput(f"{what} must hold whole numbers from 0 to 255")
        raise BadInput(
            f"{what} has {skeleton.count(b',') + 1} elements; expected {count} numbers, flat or nested as {list(shape)}"
        )
    # First and last character are brackets. The last one is skipped, so that it serves as the margin behind the text.
    chunks = (b"   "[at:] + text[max(at - 3, 0) : at + BLOCK + 1] for at in range(0, len(text) - 1, BLOCK))
    try:
        return np.concatenate([_numbers(np.frombuffer(chunk, np.uint8)) for chunk in chunks])
    except OverflowError:
        raise BadInput(f"{what} must hold whole numbers from 0 to 255") from None


def _numbers(around: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The numbers that end in a text; `around` is the text with three more characters before and one after it.

    Raises OverflowError for a number above 255.
    """
    digits = around - np.uint8(ord("0"))
    is_digit = digits < 10
    digits *= is_digit
    here, before, first = is_digit[3:-1], is_digit[2:-2], is_digit[1:-3]
    numbers = digits[3:-1] + digits[2:-2] * here * np.uint8(10)
    hundreds = digits[1:-3] * (before & here)
    if ((hundreds > 2) | ((hundreds == 2) & (numbers > 55)) | (is_digit[:-4] & first & before & here)).any():
        raise OverflowError
    numbers += hundreds * np.uint8(100)
    return numbers[np.flatnonzero(here > is_digit[4:])]


def _brackets(shape: tuple[int, ...]) -> bytes:
    """The JSON of an array without its numbers: brackets and commas."""
    *outer, last = shape
    skeleton = b"[" + b"," * (last - 1) + b"]"
    for size in reversed(outer):
        skeleton = b"[" + b",".join([skeleton] * size) + b"]"
    return skeleton
