"""`faulty_server.py ARTIFACT ...`: a server whose null runtime does what an image's first pixel says."""

import time
from typing import Any

import numpy as np
import typer
from numpy.typing import NDArray

from medserve import errors
from serve.__main__ import serve
from serve.runtimes import null

RAISES, HANGS, NOT_FINITE, WRONG_SHAPE, NO_ARRAY = 201, 202, 203, 204, 205


class Faulty(null.NullRuntime):
    asked = 0

    def place(self, images: NDArray[np.uint8]) -> Any:
        if images.flat[0] == RAISES:
            raise RuntimeError("device 0 fell off the bus")
        if images.flat[0] == HANGS:
            time.sleep(1000)
        self.asked = int(images.flat[0])
        return super().place(images)

    def fetch(self, y: int) -> Any:
        scores = super().fetch(y)
        faults = {NOT_FINITE: np.full_like(scores, np.nan), WRONG_SHAPE: scores[:, 1:], NO_ARRAY: scores.tolist()}
        return faults.get(self.asked, scores)


if __name__ == "__main__":
    null.NullRuntime = Faulty  # type: ignore[misc]  # the fault is the test
    errors.main(lambda: typer.run(serve))
