"""MLPerf's LoadGen as a referee: the same runtime in process, and the same server under Poisson arrivals.

`python -m loadtest.benchmark.loadgen PLAN` measures once, in a process of its own, and prints percentiles (ns) as JSON.
LoadGen's package lies in an environment of its own; only its module is taken from there.
"""

import http.client
import importlib
import queue
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec
import numpy as np

from loadtest.analysis import intervals
from loadtest.benchmark.bench import SIZE, Bench, Line, run
from loadtest.generator import payload
from loadtest.measure import inprocess
from loadtest.results import latency
from medserve import environments, machine, store
from medserve.empty import empty_artifact
from medserve.models import Artifact
from medserve.spec import Deployment, Environment, LoadProfile
from medserve.tables import FORMATS, pick

PACKAGE = Environment(name="loadgen", packages=("mlcommons-loadgen==6.0.17",))
SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
WITHIN = {"p50": 3.0, "p90": 3.0, "p99": 10.0}
"""Per cent by which the two may differ."""
SECONDS = 10.0
CONNECTIONS = 32
"""Threads of LoadGen's client, with a connection each; more than that never wait at half of the capacity."""


class Once(msgspec.Struct, kw_only=True):
    """One measurement: `packages` is where LoadGen lies, `request` the body of a request to `url`."""

    who: Literal["LoadGen", "medserve"]
    artifact: str
    deployment: Deployment
    cpus: tuple[int, ...]
    seconds: float
    size: int = SIZE
    seed: int = 0
    packages: str = ""
    url: str = ""
    rate: float = 0.0
    request: bytes = b""


def measure(bench: Bench) -> Iterator[Line]:
    """SingleStream against in-process timing, Server against Poisson arrivals at half of the capacity."""
    packages = next((environments.make(PACKAGE).parent / "lib").glob("python*/site-packages"))
    size, artifact = SIZE, empty_artifact(bench.new(), SIZE)
    deployment = Deployment(
        artifact="empty", runtime="delay", batch_sizes=(1,), options={"delays_ms": [1.0], "busy": True}
    )
    if bench.artifact is not None:
        artifact = bench.artifact
        found = store.read_json(artifact / "artifact.json", Artifact)
        size, runtime = found.checkpoint.size, pick(FORMATS, "format", found.format).runtime
        deployment = Deployment(artifact=artifact.name, runtime=runtime, batch_sizes=(1,))
    alone = Once(
        who="medserve", artifact=str(artifact), deployment=deployment, cpus=bench.server_cpus,
        seconds=SECONDS * bench.scale, size=size, packages=str(packages),
    )  # fmt: skip
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    for seed in range(bench.rounds):
        for who, kept in (("medserve", ours), ("LoadGen", theirs)):
            kept.append(_once(bench, msgspec.structs.replace(alone, who=who, seed=seed)))
    yield from _lines("SingleStream", ours, theirs, SHARES)
    yield from _server(bench, alone)


def _server(bench: Bench, alone: Once) -> Iterator[Line]:
    """One server of 2 ms per request, busy while it answers, at half of its capacity."""
    ours, theirs = [], []
    options = {"delays_ms": [2.0], "busy": True}
    with bench.serving("delay", dispatch="inline", options=options) as server:
        full = latency.answered_rate(bench.ours(bench.plan(server.url, 3.0, mode="closed-loop", users=8)))
        for seed in range(bench.rounds):
            load = bench.plan(server.url, 2 * SECONDS, seed=seed, mode="open-loop", arrivals="poisson", rate=full / 2)
            values = np.sort(latency.from_intended_start(bench.ours(load)))
            ours.append({name: intervals.percentile(values, p) for name, p in SHARES.items()})
            plan = msgspec.structs.replace(
                alone, who="LoadGen", cpus=bench.client_cpus, seconds=load.profile.seconds, seed=seed, url=server.url,
                rate=full / 2, request=payload.requests(load)[1][0],
            )  # fmt: skip
            theirs.append(_once(bench, plan))
    yield from _lines("Server at 50 %", ours, theirs, {"p99": 0.99})


def _lines(
    scenario: str, ours: list[dict[str, float]], theirs: list[dict[str, float]], shares: dict[str, float]
) -> Iterator[Line]:
    for name in shares:
        a, b = (median(one[name] for one in side) / 1e6 for side in (ours, theirs))
        note = f"{a:.4f} and {b:.4f} ms, medians over {len(ours)} blocks"
        yield Line(
            part="loadgen", name=f"{scenario}: {name}, medserve to LoadGen", value=100 * (a / b - 1), unit="%",
            low=-WITHIN[name], high=WITHIN[name], note=note,
        )  # fmt: skip


def _once(bench: Bench, plan: Once) -> dict[str, float]:
    path = bench.new() / "plan.json"
    store.write_json(path, plan)
    return msgspec.json.decode(run("loadtest.benchmark.loadgen", str(path)).splitlines()[-1], type=dict[str, float])


def _in_process(plan: Once) -> dict[str, float]:
    """As `medserve time` measures."""
    machine.pin(plan.cpus)
    runtime, _ = inprocess.open_runtime(Path(plan.artifact), plan.deployment)
    profile = LoadProfile(name="alone", mode="in-process", seconds=plan.seconds, warmup_seconds=1.0)
    timed = inprocess.measure(runtime, plan.deployment, profile, _images(plan), None, plan.seed).samples
    took = np.sort((timed["done_ns"] - timed["sent_ns"])[~timed["warmup"]].astype(np.float64))
    return {name: intervals.percentile(took, p) for name, p in SHARES.items()}


def _images(plan: Once) -> Any:
    return np.random.default_rng(plan.seed).integers(0, 256, (64, plan.size, plan.size, 3), np.uint8)


def _by_loadgen(plan: Once) -> dict[str, float]:
    """As LoadGen measures. Its logging thread must not share the measured core: only that which predicts is pinned."""
    sys.path.append(plan.packages)
    lg = importlib.import_module("mlperf_loadgen")

    settings = lg.TestSettings()
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_duration_ms = round(plan.seconds * 1e3)
    settings.schedule_rng_seed = plan.seed
    settings.min_query_count = 100
    if plan.url:
        settings.scenario = lg.TestScenario.Server
        settings.server_target_qps = plan.rate
        settings.server_target_latency_ns = 10**9
        # Without an end LoadGen goes on until its own percentile is known to its confidence.
        settings.max_duration_ms = settings.min_duration_ms
        issue = _over_http(lg, plan)
    else:
        settings.scenario = lg.TestScenario.SingleStream
        settings.max_duration_ms = settings.min_duration_ms
        issue = _predicting(lg, plan)
    sut = lg.ConstructSUT(issue, lambda: None)
    images = lg.ConstructQSL(64, 64, lambda _: None, lambda _: None)
    with tempfile.TemporaryDirectory() as folder:
        log = lg.LogSettings()
        log.enable_trace = False
        log.log_output.outdir = folder
        lg.StartTestWithLogSettings(sut, images, settings, log)
        summary = (Path(folder) / "mlperf_log_summary.txt").read_text()
    lg.DestroyQSL(images)
    lg.DestroySUT(sut)
    found = dict(re.findall(r"(\d+\.\d+) percentile latency \(ns\)\s*:\s*(\d+)", summary))
    return {name: float(found[f"{100 * p:.2f}"]) for name, p in SHARES.items()}


def _predicting(lg: Any, plan: Once) -> Any:
    runtime, _ = inprocess.open_runtime(Path(plan.artifact), plan.deployment)
    images = _images(plan)
    pinned = False

    def issue(queries: list[Any]) -> None:
        nonlocal pinned
        if not pinned:
            machine.pin(plan.cpus)  # of this thread; those of LoadGen's log are older
            pinned = True
        for query in queries:
            scores = inprocess.predict(runtime, images[query.index : query.index + 1], plan.deployment.batch_sizes)
            lg.QuerySamplesComplete([lg.QuerySampleResponse(query.id, scores.ctypes.data, scores.nbytes)])

    return issue


def _over_http(lg: Any, plan: Once) -> Any:
    machine.pin(plan.cpus)
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    address = urlsplit(plan.url)
    body, headers = _split(plan.request)

    def client() -> None:
        connection = http.client.HTTPConnection(address.hostname or "", address.port)
        while True:
            number = waiting.get()
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            content = np.frombuffer(answer.read(), np.uint8)
            if answer.status == 200:
                lg.QuerySamplesComplete([lg.QuerySampleResponse(number, content.ctypes.data, content.nbytes)])

    path = headers.pop(":path")
    for _ in range(CONNECTIONS):
        threading.Thread(target=client, daemon=True).start()

    def issue(queries: list[Any]) -> None:
        for query in queries:
            waiting.put(query.id)

    return issue


def _split(request: bytes) -> tuple[bytes, dict[str, str]]:
    """The body of an HTTP request, and its headers with its path."""
    head, _, body = request.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    kept = dict(line.split(": ", 1) for line in lines if not line.lower().startswith("host"))
    return body, {**kept, ":path": first.split()[1]}


if __name__ == "__main__":
    given = store.read_json(Path(sys.argv[1]), Once)
    print(msgspec.json.encode((_by_loadgen if given.who == "LoadGen" else _in_process)(given)).decode())
