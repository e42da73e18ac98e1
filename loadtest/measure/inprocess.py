"""A deployment timed in this process: the runtime that a server would load, without HTTP.

The timed call is `serve.runtimes.predict` on prepared images; loading, compiling and choosing the image are not timed.
Each measurement has a warm-up that is kept and marked, then the headline pass, then a shorter pass that times `place`,
`run` with `synchronise`, and `fetch` separately, and `run` once more by the events of a device that has them: to
synchronise in between costs time, so it is not the headline. A profile with a timing mistake makes it in the headline
pass, and has no stages.
"""

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadtest import samples
from loadtest.generator.payload import batches
from medserve import machine
from medserve.spec import Deployment, LoadProfile
from medserve.timing import now, timed_loop
from serve.runtimes import Runtime, open_fitting, open_runtime, pad, predict

__all__ = ["measure", "open_fitting", "open_runtime", "predict"]

MIN_CALLS = 6
"""The fewest calls that give the median a 95 % interval; they are made however long they take."""
MAX_CALLS = 100_000
"""Calls after which a fast runtime ends: more add no information and fill the disk."""
NULL_CALLS = 500
"""The same of the null runtime, which has nothing but its percentiles to be known for."""
WARM_CALLS = 6
"""The fewest calls of a warm-up: in the first ones the heap grows, until its free blocks fit what a call allocates."""
STAGED_SHARE = 0.25
"""Length of the staged pass as a share of the headline pass."""
COLD_CALLS = 100
"""Calls whose mean is the latency when compilation is timed on purpose."""


class Timed(msgspec.Struct):
    """Columns of `samples.SCHEMA`, and of `samples.STAGES`, empty with a timing mistake or when not asked for.

    `used` is what the process used in the headline pass, by `medserve.machine.USED`, and the `calls` of it.
    """

    samples: dict[str, Any]
    stages: dict[str, Any]
    used: dict[str, float]


def measure(
    runtime: Runtime,
    deployment: Deployment,
    profile: LoadProfile,
    images: NDArray[np.uint8],
    expected: NDArray[np.float32] | None,
    seed: int,
    with_stages: bool = True,
) -> Timed:
    """Time batches of `profile.batch` of the uint8 (N, H, W, C) `images`, in an order given by `seed`.

    `expected`, float32 (N, classes), is compared after the run; null compares nothing. For the timing mistake
    `compile-inside` the runtime must not have run.
    """
    sizes = deployment.batch_sizes
    chosen = batches(images, profile.batch, seed)[: 1 if profile.mistake == "one-image" else None]
    ready = [np.ascontiguousarray(images[row]) for row in chosen]
    count = len(ready)
    scores: list[NDArray[np.float32]] = []
    returned: list[int] = []

    def call(index: int) -> None:
        scores.append(predict(runtime, ready[index % count], sizes))

    def call_predict(index: int) -> None:
        scores.append(runtime.predict(ready[index % count]))  # type: ignore[attr-defined]  # its file says so

    def call_unsynchronised(index: int) -> None:
        y = runtime.run(runtime.place(pad(ready[index % count], sizes)))
        returned.append(now())
        scores.append(runtime.fetch(y)[: profile.batch])

    most = NULL_CALLS if deployment.runtime == "null" else MAX_CALLS
    timed = {"predict": call_predict, "unsynchronised": call_unsynchronised}.get(profile.mistake or "", call)
    warm = np.empty((0, 2), np.int64)
    if profile.mistake != "compile-inside":
        warm = timed_loop(timed, profile.warmup_seconds, WARM_CALLS, most)
    before = machine.usage()
    if profile.mistake == "compile-inside":
        headline = timed_loop(call, 0.0, COLD_CALLS, COLD_CALLS)
    else:
        headline = timed_loop(timed, profile.seconds, MIN_CALLS, most, profile.goes_on)
    consumed = {name: value - before[name] for name, value in machine.usage().items()}
    stamps = np.concatenate([warm, headline])
    if returned:
        stamps[:, 1] = returned
    # Each pass begins with the first batch.
    used = chosen[np.concatenate([np.arange(len(warm)), np.arange(len(headline))]) % count]
    columns: dict[str, Any] = {
        "sent_ns": stamps[:, 0],
        "done_ns": stamps[:, 1],
        "status": np.full(len(stamps), 200),
        "image": used[:, 0],
        "batch": np.full(len(stamps), profile.batch),
        "warmup": np.arange(len(stamps)) < len(warm),
    }
    if expected is not None:
        columns["wrong"] = [samples.differs(given, expected[row]) for given, row in zip(scores, used, strict=True)]
    stages = {} if profile.mistake or not with_stages else _stages(runtime, ready, sizes, profile.seconds, most)
    return Timed(columns, stages, {**consumed, "calls": len(headline)})


def _stages(
    runtime: Runtime, ready: list[NDArray[np.uint8]], sizes: tuple[int, ...], seconds: float, most: int
) -> dict[str, Any]:
    padded = [pad(images, sizes) for images in ready]
    stages: list[tuple[int, int, int]] = []
    by_device: list[int | None] = []

    def call(index: int) -> None:
        images = padded[index % len(padded)]
        start = now()
        x = runtime.place(images)
        placed = now()
        y = runtime.run(x)
        runtime.synchronise(y)
        computed = now()
        runtime.fetch(y)
        stages.append((placed - start, computed - placed, now() - computed))
        by_device.append(runtime.device_ns(x))

    first = len(timed_loop(call, 0.0))
    timed_loop(call, seconds * STAGED_SHARE, MIN_CALLS, most)
    place, run, fetch = np.array(stages, np.int64).T
    columns: dict[str, Any] = {"place_ns": place, "run_ns": run, "fetch_ns": fetch}
    columns["warmup"] = np.arange(len(stages)) < first
    if by_device[0] is not None:
        columns["device_ns"] = np.array(by_device, np.int64)
    return columns
