"""LitServe with its worker process, and nested lists in JSON both ways."""

import os

import litserve
import numpy as np
from onnx_model import Model


class Cells(litserve.LitAPI):
    """See LitServe's LitAPI."""

    def setup(self, _device):
        self.model = Model()

    def decode_request(self, request):
        return np.array(request["instances"], np.uint8)

    def predict(self, x):
        return self.model(x)

    def encode_response(self, output):
        return {"predictions": output.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Cells(api_path="/v1/models/model:predict"), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False, log_level="error")
