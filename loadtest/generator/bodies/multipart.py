"""An image file in a form, as a web page posts it: a PNG in the field `file` (RFC 7578), JSON scores as the answer."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from loadtest.generator.bodies.instances import decode
from medserve.errors import BadInput

__all__ = ["decode", "encode"]
PATH = ("/predict",)
BOUNDARY = "medserve-1c0b2f9d6a"


def encode(images: NDArray[np.uint8]) -> tuple[dict[str, str], bytes]:
    """Headers and body of a prediction for uint8 (1, H, W, C) images. Raises BadInput for several of them."""
    if len(images) != 1:
        raise BadInput(f"such a body holds one image, not {len(images)}; leave out batches, or this server")
    file = io.BytesIO()
    Image.fromarray(images[0].squeeze()).save(file, "PNG")
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="image.png"\r\n'
        "Content-Type: image/png\r\n\r\n"
    )
    body = head.encode() + file.getvalue() + f"\r\n--{BOUNDARY}--\r\n".encode()
    return {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}, body
