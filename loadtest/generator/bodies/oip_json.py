"""The Open Inference Protocol v2 with numbers in JSON both ways: what servers without the binary extension take."""

import numpy as np
from numpy.typing import NDArray

from medserve import wire
from medserve.wire import decode_response as decode

__all__ = ["decode", "encode"]
PATH = ("/v2/models/{model}/infer",)


def encode(images: NDArray[np.uint8]) -> tuple[dict[str, str], bytes]:
    """Headers and body of an inference request."""
    return wire.encode_request(images, binary=False)
