"""KServe's own server with a custom model: the Open Inference Protocol v2 with binary tensors both ways."""

import logging
import os

from kserve import InferOutput, InferResponse, Model, ModelServer
from onnx_model import Model as OnnxModel


class Cells(Model):
    """See KServe's Model."""

    def __init__(self):
        super().__init__("model")
        self.model = OnnxModel()
        self.ready = True

    async def predict(self, payload, headers=None, response_headers=None):  # noqa: ARG002 (KServe's signature)
        scores = self.model(payload.inputs[0].as_numpy())
        output = InferOutput(name="probabilities", shape=list(scores.shape), datatype="FP32")
        output.set_data_from_numpy(scores, binary_data=True)
        return InferResponse(response_id=payload.id or "", model_name=self.name, infer_outputs=[output])


if __name__ == "__main__":
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
    server = ModelServer(http_port=int(os.environ["PORT"]), enable_grpc=False, workers=1)
    server.start([Cells()])
