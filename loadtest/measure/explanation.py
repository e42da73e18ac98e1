"""Where the time of a prediction goes inside the model, by the runtime's own profiler, in this process."""

from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory

import numpy as np

from loadtest.measure import inprocess
from medserve.errors import CannotRun
from medserve.result import Explained
from medserve.spec import Deployment
from medserve.timing import now

SECONDS = 2.0
"""Of predictions without the profiler, and with it."""
FEWEST, MOST = 5, 200
"""Predictions; profilers keep an event for every operator of each."""
WARM = 3


def explain(artifact: Path, deployment: Deployment, batch: int) -> Explained:
    """Profile predictions on golden images. What is explained of a runtime without a profiler says so."""
    runtime, manifest = inprocess.open_runtime(artifact, deployment)
    with np.load(artifact / "golden.npz") as golden:
        images = np.ascontiguousarray(np.resize(golden["images"], (batch, *golden["images"].shape[1:])))

    took: list[int] = []

    def call() -> None:
        before = now()
        inprocess.predict(runtime, images, deployment.batch_sizes)
        took.append(now() - before)

    for _ in range(WARM):
        call()
    count = round(min(max(SECONDS * 1e9 / median(took), FEWEST), MOST))
    took.clear()
    for _ in range(count):
        call()
    plain = median(took)
    took.clear()
    reason = None
    with TemporaryDirectory() as folder:
        try:
            found = runtime.profile(call, count, Path(folder))
        except CannotRun as error:
            found, reason = [], str(error)
            took.append(round(plain))
    return Explained(
        deployment=deployment.name,
        checkpoint=manifest.checkpoint.name,
        batch=batch,
        plain_ms=plain / 1e6,
        # A runtime may compile the model again for its profiler, in a call before the others.
        profiled_ms=fmean(took[-count:]) / 1e6,
        operators=tuple(sorted(found, key=lambda operator: -operator.ms)),
        reason=reason,
    )
