"""What HTTP adds to a runtime beyond what it adds to the null runtime, and why: pauses, or caches that others used.

The same call in process, in short rounds of each kind in turn: back to back, after a sleep as long as a request over
HTTP leaves the server, after reading more than the core's own caches hold, and after both.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np

from loadtest.benchmark.bench import Bench, Line
from loadtest.measure import inprocess
from loadtest.results import latency
from medserve import machine, store
from medserve.models import Artifact
from medserve.spec import Deployment
from medserve.tables import FORMATS, pick
from medserve.timing import now

ROUNDS, CALLS = 20, 50
PAUSE_SECONDS = 0.0002
EVICTED_BYTES = 8 << 20
"""More than the caches that belong to one core."""


def measure(bench: Bench, folder: Path) -> Iterator[Line]:
    """The figures of one artifact with its format's own runtime, in milliseconds."""
    found = store.read_json(folder / "artifact.json", Artifact)
    runtime = pick(FORMATS, "format", found.format).runtime
    added = {name: value / 1e6 for name, value in _in_process(bench, folder, runtime).items()}
    base = added.pop("back to back")
    part = f"{runtime}, {found.checkpoint.size} px"
    yield Line(part=part, name="in process, back to back", value=base, unit="ms")
    for name, value in added.items():
        yield Line(part=part, name=f"more {name}", value=value - base, unit="ms")
    over: dict[str, list[float]] = {"model": [], "null": []}
    for _ in range(bench.rounds):
        for name in over:
            given = {"artifact": folder} if name == "model" else {"size": found.checkpoint.size}
            with bench.serving(runtime if name == "model" else "null", **given) as server:
                load = bench.plan(server.url, 3.0, model=server.model, size=found.checkpoint.size, mode="closed-loop")
                over[name].append(float(np.median(latency.service_time(bench.ours(load)))) / 1e6)
    model, null = (median(values) for values in over.values())
    yield Line(part=part, name="more over HTTP", value=model - base, unit="ms")
    yield Line(part=part, name="of it what the null runtime takes", value=null, unit="ms")


def _in_process(bench: Bench, folder: Path, name: str) -> dict[str, float]:
    """The median of each kind of call, in nanoseconds."""
    before = machine.usable_cpus()
    machine.pin(bench.server_cpus)
    try:
        deployment = Deployment(artifact=folder.name, runtime=name, batch_sizes=(1,))
        runtime, _ = inprocess.open_runtime(folder, deployment)
        with np.load(folder / "golden.npz") as golden:
            images = [np.ascontiguousarray(golden["images"][at : at + 1]) for at in range(len(golden["images"]))]
        others = np.ones(EVICTED_BYTES // 8)

        def pause() -> None:
            time.sleep(PAUSE_SECONDS)

        def evict() -> None:
            others.sum()

        kinds: dict[str, tuple[Callable[[], None], ...]] = {
            "back to back": (),
            "after a pause of 0.2 ms": (pause,),
            "with evicted caches": (evict,),
            "with both": (evict, pause),
        }
        took: dict[str, list[int]] = {name: [] for name in kinds}
        for _ in range(ROUNDS):
            for kind, prepare in kinds.items():
                for call in range(CALLS):
                    for step in prepare:
                        step()
                    start = now()
                    inprocess.predict(runtime, images[call % len(images)], deployment.batch_sizes)
                    took[kind].append(now() - start)
    finally:
        machine.pin(before)
    return {kind: median(values) for kind, values in took.items()}
