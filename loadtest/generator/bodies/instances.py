"""Nested lists in JSON: {"instances": ...} and {"predictions": ...}, the rows of TensorFlow Serving's REST API.

KServe calls it the V1 protocol; it is also what a web framework's tutorial makes of a model.
"""

import msgspec
import numpy as np
from numpy.typing import NDArray

from medserve.errors import BadInput

PATH = ("/v1/models/{model}:predict",)


class _Answer(msgspec.Struct):
    predictions: list[list[float]]


_decoder = msgspec.json.Decoder(_Answer)


def encode(images: NDArray[np.uint8]) -> tuple[dict[str, str], bytes]:
    """Headers and body of a prediction for uint8 (N, H, W, C) images."""
    return {"Content-Type": "application/json"}, msgspec.json.encode({"instances": images.tolist()})


def decode(body: bytes, _head_length: str | None) -> NDArray[np.float32]:
    """The scores of an answer, float32 (N, classes). Raises BadInput for any other body."""
    try:
        return np.array(_decoder.decode(body).predictions, np.float32)
    except (msgspec.MsgspecError, ValueError) as error:
        raise BadInput(f"the answer has no predictions as rows of numbers: {error}") from None
