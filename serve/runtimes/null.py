"""No model: the same uniform probabilities for every image. It measures the server and the load generator alone."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medserve.machine import versions
from medserve.spec import Deployment
from serve.runtimes import Runtime

REQUIRES = ()
READS = ()


class NullRuntime(Runtime):
    """See `serve.runtimes.Runtime`."""

    def __init__(self, classes: int, largest: int) -> None:
        self._scores = np.full((largest, classes), 1.0 / classes, np.float32)

    def run(self, x: NDArray[np.uint8]) -> int:
        return len(x)

    def fetch(self, y: int) -> NDArray[np.float32]:
        return self._scores[:y]

    def facts(self) -> dict[str, Any]:
        return {"runtime": "null", "threads": 1, "device": "none", "versions": versions("numpy")}


def load(_model: Path, classes: int, deployment: Deployment) -> NullRuntime:
    """A runtime without a model, for artifacts of any format."""
    return NullRuntime(classes, deployment.batch_sizes[-1])
