"""BentoML with one worker, and nested lists in JSON both ways."""

import bentoml
import numpy as np
from onnx_model import Model


@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class Cells:
    """See BentoML's services."""

    def __init__(self) -> None:
        self.model = Model()

    @bentoml.api
    def predict(self, image: np.ndarray) -> np.ndarray:
        """Probabilities of one image."""
        return self.model(image.astype(np.uint8)[None])[0]
