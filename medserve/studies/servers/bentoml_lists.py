"""BentoML with one worker, and nested lists in JSON both ways."""

import bentoml
import numpy as np
from onnx_model import Model


@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class Cells:
    """See BentoML's services."""

    def __init__(self) -> None:
        self.model = Model()

    @bentoml.api(route="/v1/models/model:predict")
    def predict(self, instances: np.ndarray) -> dict[str, list[list[float]]]:
        """Probabilities of images."""
        return {"predictions": self.model(instances.astype(np.uint8)).tolist()}
