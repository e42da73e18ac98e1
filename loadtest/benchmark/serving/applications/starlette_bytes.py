"""Starlette, with the least that can be done: an image's bytes come, the scores' bytes go."""

import numpy as np
from onnx_model import Model
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

model = Model()


async def predict(request: Request) -> Response:
    """Probabilities of one image."""
    image = np.frombuffer(await request.body(), np.uint8).reshape(1, *model.shape)
    return Response(model(image).tobytes(), media_type="application/octet-stream")


app = Starlette(routes=[Route("/predict", predict, methods=["POST"])])
