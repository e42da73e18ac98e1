"""Raw pixels of one image as the whole body, and float32 scores as the answer's: the least that can be sent."""

import numpy as np
from numpy.typing import NDArray

from medserve.errors import BadInput

PATH = ("/predict",)


def encode(images: NDArray[np.uint8]) -> tuple[dict[str, str], bytes]:
    """Headers and body of a prediction for uint8 (1, H, W, C) images. Raises BadInput for several of them."""
    if len(images) != 1:
        raise BadInput(f"such a body holds one image, not {len(images)}; leave out batches, or this server")
    return {"Content-Type": "application/octet-stream"}, np.ascontiguousarray(images).tobytes()


def decode(body: bytes, _head_length: str | None) -> NDArray[np.float32]:
    """The scores of an answer, float32 (1, classes). Raises BadInput for bytes that are no whole numbers of four."""
    if not body or len(body) % 4:
        raise BadInput(f"the answer has {len(body)} bytes; expected float32 scores, four bytes each")
    return np.frombuffer(body, "<f4")[None]
