"""Ray Serve with one replica, and nested lists in JSON both ways."""

import os

import numpy as np
import ray
from onnx_model import Model
from ray import serve


@serve.deployment(num_replicas=1, logging_config={"enable_access_log": False})
class Cells:
    """See Ray Serve's deployments."""

    def __init__(self):
        self.model = Model()

    async def __call__(self, request):
        """Probabilities of images."""
        images = np.array((await request.json())["instances"], np.uint8)
        return {"predictions": self.model(images).tolist()}


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, _temp_dir=os.environ["RAY_FOLDER"])
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])})
    serve.run(Cells.bind(), route_prefix="/v1/models/model:predict", blocking=True)
