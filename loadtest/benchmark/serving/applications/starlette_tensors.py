"""Starlette with this project's own codec: the same bytes in and out, and another application around the model."""

from onnx_model import Model
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from medserve import wire

model = Model()


async def infer(request: Request) -> Response:
    """The Open Inference Protocol v2, JSON or binary."""
    body, head_length = await request.body(), request.headers.get(wire.HEAD_LENGTH)
    asked = wire.decode_request(body, head_length, tuple(model.shape))
    headers, answer = wire.encode_response("cells", "1", model(asked.images), asked)
    return Response(answer, headers={name.decode(): value.decode() for name, value in headers})


app = Starlette(routes=[Route("/v2/models/cells/infer", infer, methods=["POST"])])
