"""Starlette, around the same model: with the least that can be done, and with this project's own codec.

The first takes an image's bytes and returns the scores' bytes, the second the same bytes as this project's server.
"""

import numpy as np
from onnx_model import Model
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from medserve import wire

model = Model()


async def predict(request: Request) -> Response:
    """Probabilities of one image."""
    image = np.frombuffer(await request.body(), np.uint8).reshape(1, *model.shape)
    return Response(model(image).tobytes(), media_type="application/octet-stream")


async def infer(request: Request) -> Response:
    """The Open Inference Protocol v2, JSON or binary."""
    body, head_length = await request.body(), request.headers.get(wire.HEAD_LENGTH)
    asked = wire.decode_request(body, head_length, tuple(model.shape))
    headers, answer = wire.encode_response("model", "1", model(asked.images), asked)
    return Response(answer, headers={name.decode(): value.decode() for name, value in headers})


routes = [("/predict", predict), ("/v2/models/model/infer", infer)]
app = Starlette(routes=[Route(path, answer, methods=["POST"]) for path, answer in routes])
