"""The Open Inference Protocol v2 with the binary tensor extension, as this program's server has it."""

from medserve.wire import decode_response as decode
from medserve.wire import encode_request as encode

__all__ = ["decode", "encode"]
PATH = ("/v2/models/{model}/infer",)
