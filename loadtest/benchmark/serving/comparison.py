"""The overhead per request of this wrapper and of the servers of a study, beyond the model.

Every server has the same ONNX file on one thread, on the same core as all the others, which are suspended while one is
measured; the client, which never sleeps, has another core. Each round measures every server, in a new random order: one
connection, many connections, and the model in a process of the same environment. They are compared within the rounds.
"""

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import numpy as np
import psutil
from numpy.typing import NDArray

from loadtest.benchmark.bench import SIZE, Bench, Line, columns, run, tell
from loadtest.generator.payload import Load, address_of, body_of, target
from loadtest.measure.foreign_server import ForeignServer
from loadtest.selftest.reference_client import Block, closed_loop
from medserve import environments, machine, process, store, study_file, wire
from medserve.errors import BadInput, CannotRun
from medserve.numbers import number
from medserve.spec import Deployment, Environment, Server
from medserve.study import Study
from medserve.tables import FORMATS, profile

CONNECTIONS = 8
WARMUP = 50
READY_SECONDS = 120.0
MODEL_FILE = FORMATS["onnx"].path
IN_PROCESS = study_file.STUDIES / "servers" / "onnx_model.py"
AGREE = 1e-5
"""Largest difference of the scores of two servers: some send them as text."""
OURS = "medserve"
ANY = profile("closed-loop", users=1)

COLUMNS = columns(
    ("server", "body"),
    (
        *("p50, us", "p99, us", "in process, us", "overhead, us", "behind ours (quartiles), us"),
        *(f"requests/s, {CONNECTIONS} connections", "CPU per request, us"),
    ),
)


class Row(msgspec.Struct, frozen=True):
    """Microseconds of one server. `overhead`: p50 less that in process; `behind`: its excess over ours by rounds."""

    server: str
    body: str
    requests: int
    p50: float
    p99: float
    in_process: float
    overhead: float
    behind: float
    behind_low: float
    behind_high: float
    per_second: float
    cpu: float
    versions: dict[str, str]

    def cells(self) -> tuple[str, ...]:
        """The cells of a row of COLUMNS."""
        behind = f"{number(self.behind)} ({number(self.behind_low)} to {number(self.behind_high)})"
        ours = self.server == OURS and self.body == "oip"
        before = map(number, (self.p50, self.p99, self.in_process, self.overhead))
        return self.server, self.body, *before, "" if ours else behind, number(self.per_second), number(self.cpu)


class Contestant(msgspec.Struct):
    """A server that is measured: where its requests go and what they are, its process, and the model alone."""

    load: Load
    name: str
    image: NDArray[np.uint8]
    pid: int
    alone: "InProcess"
    versions: dict[str, str]
    blocks: list[Block] = []
    in_process: list[float] = []
    rates: list[float] = []
    cpu: float = 0.0

    @property
    def request(self) -> bytes:
        """A request for the scores of its image."""
        return wire.http_request(target(self.load), *body_of(self.load).encode(self.image[None]))

    def check(self) -> None:
        """Suspend it when it answers rightly. Raises CannotRun when it answers with other scores than the model's."""
        headers, body = body_of(self.load).encode(self.image[None])
        with closing(http.client.HTTPConnection(*address_of(self.load.url), timeout=READY_SECONDS)) as connection:
            connection.request("POST", urlsplit(target(self.load)).path, body, headers)
            answer = connection.getresponse()
            found = body_of(self.load).decode(answer.read(), answer.getheader(wire.HEAD_LENGTH))[0]
        expected = self.alone.scores(self.image)
        if found.shape != expected.shape or np.abs(found - expected).max() > AGREE:
            raise CannotRun(f"{self.name} answers {found[:4].tolist()}...; the model gives {expected[:4].tolist()}...")
        suspend(self.pid)

    def measure(self, count: int) -> None:
        """Measure it once, while all others are suspended."""
        resume(self.pid)
        request = self.request
        closed_loop(self.load.url, request, 1, WARMUP)
        before = cpu_seconds(self.pid)
        self.blocks.append(closed_loop(self.load.url, request, 1, count))
        self.cpu += cpu_seconds(self.pid) - before
        self.rates.append(closed_loop(self.load.url, request, CONNECTIONS, count).per_second)
        suspend(self.pid)
        self.in_process.append(float(np.median(self.alone.times(1, count))) / 1e3)

    @property
    def overheads(self) -> NDArray[np.float64]:
        """Microseconds by round: p50 less that in process."""
        return np.array([np.median(block.latencies) / 1e3 for block in self.blocks]) - self.in_process

    def row(self, ours: "Contestant") -> Row:
        """Its figures, and how far it is behind ours."""
        latencies = np.concatenate([block.latencies for block in self.blocks]) / 1e3
        low, behind, high = np.quantile(self.overheads - ours.overheads, (0.25, 0.5, 0.75))
        return Row(
            server=self.name,
            body=self.load.body,
            requests=len(latencies),
            p50=float(np.median(latencies)),
            p99=float(np.quantile(latencies, 0.99, method="inverted_cdf")),
            in_process=float(np.median(self.in_process)),
            overhead=float(np.median(self.overheads)),
            behind=float(behind),
            behind_low=float(low),
            behind_high=float(high),
            per_second=float(np.median(self.rates)),
            cpu=self.cpu / len(latencies) * 1e6,
            versions=self.versions,
        )


def compare(bench: Bench, model: Path, study: Study, names: Sequence[str], rounds: int, count: int) -> list[Row]:
    """Measure the wrapper and the servers of a study by these names in `rounds` of `count` requests; first is ours.

    `model` is an artifact in ONNX. Raises CannotRun when a server cannot be installed, does not start, or gives other
    scores than the model.
    """
    made_in = {one.name: one for one in study.environments}
    chosen = [server for server in study.servers if server.name in names]
    for at, server in enumerate(chosen):
        tell(f"environment of {server.name}, {at + 1} of {len(chosen)}")
        environments.make(made_in[server.environment])
    with ExitStack() as stack:
        contestants = list(_ours(bench, model, stack))
        for server in chosen:
            tell(f"starting {server.name}")
            contestants.append(_theirs(bench, model, server, made_in[server.environment], stack))
        stack.callback(machine.pin, machine.usable_cpus())
        machine.pin(bench.client_cpus)
        random = np.random.default_rng(0)
        for round_ in range(rounds):
            tell(f"round {round_ + 1} of {rounds}")
            for at in random.permutation(len(contestants)):
                contestants[at].measure(count)
    return [one.row(contestants[0]) for one in contestants]


def installable(study: Study) -> list[str]:
    """The servers of a study that start in an environment which it names: the others are not there to be compared."""
    return [server.name for server in study.servers if server.command and server.environment]


def _ours(bench: Bench, model: Path, stack: ExitStack) -> Iterator[Contestant]:
    """The wrapper twice: with the bodies of its load tests, and with JSON."""
    server = stack.enter_context(bench.serving("onnx_runtime", artifact=model))
    stack.callback(resume, server.pid)  # a suspended process cannot be told to end
    alone = InProcess(Path(sys.executable), model / MODEL_FILE, bench.server_cpus)
    stack.callback(alone.stop)
    for body in ("oip", "oip_json"):
        ours = machine.versions("onnxruntime-gpu", "onnxruntime", "numpy", "uvicorn", "uvloop", "httptools")
        load = Load(url=server.url, model=server.model, profile=ANY, body=body)
        contestant = Contestant(load, OURS, golden_image(model), server.pid, alone, ours)
        contestant.check()
        resume(server.pid)
        yield contestant
    suspend(server.pid)


def _theirs(bench: Bench, model: Path, asked: Server, made_in: Environment, stack: ExitStack) -> Contestant:
    deployment = Deployment(artifact=model.name, runtime=asked.runtime, server=asked, environment=made_in)
    server = ForeignServer(model, deployment, bench.server_cpus, bench.new())
    stack.callback(server.stop)
    server.wait_ready()
    image = golden_image(model)
    server.answer_first(image[None])
    assert server.pid is not None
    stack.callback(resume, server.pid)
    alone = InProcess(environments.programs(made_in) / "python", model / MODEL_FILE, bench.server_cpus)
    stack.callback(alone.stop)
    load = Load(url=server.url, model=server.model, profile=ANY, body=asked.body, path=asked.path)
    contestant = Contestant(load, asked.name, image, server.pid, alone, server.facts()["versions"])
    contestant.check()
    return contestant


def train_and_export(bench: Bench) -> Path:
    """An artifact in ONNX of a network that was trained for an epoch: its speed does not depend on its accuracy."""
    checkpoint, artifact = bench.new() / "cells", bench.new() / "cells.onnx"
    tell("a model to serve")
    run("train", "run", "--dataset", "synthetic", "--size", str(SIZE), "--set", "epochs=1", "--out", str(checkpoint))
    run("export", str(checkpoint), "--format", "onnx", "--out", str(artifact))
    return artifact


def check_model(model: Path) -> Path:
    """The artifact, before anything is installed for it. Raises BadInput for one that is damaged, or not ONNX."""
    if (form := store.read_artifact(model).format) != "onnx":
        raise BadInput(f"{model}: its format is {form}; all these servers run onnx, which `medserve export` writes")
    return model.resolve()


def golden_image(model: Path) -> NDArray[np.uint8]:
    """An image whose scores the artifact has, (H, W, C)."""
    with np.load(model / "golden.npz") as golden:
        image: NDArray[np.uint8] = golden["images"][0]
        return image


def targets(rows: Sequence[Row]) -> Iterator[Line]:
    """The overheads of the others less ours. A server without the protocol has less to do, so it has no target."""
    for row in rows:
        if row.server != OURS:
            name, low = f"overhead of {row.server} less ours", None if row.body == "image_bytes" else 0.0
            note = f"quartiles of the rounds {number(row.behind_low)} to {number(row.behind_high)}"
            yield Line(part="servers", name=name, value=row.behind, unit="us", low=low, note=note)


def members(pid: int) -> list[psutil.Process]:
    """A process and all its children; none when it has ended."""
    try:
        parent = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return []
    return [parent, *parent.children(recursive=True)]


def suspend(pid: int) -> None:
    """Suspend a process and all its children, while others are measured."""
    for one in members(pid):
        one.suspend()


def resume(pid: int) -> list[psutil.Process]:
    """Resume a process and all its children, and return them."""
    found = members(pid)
    for one in found:
        one.resume()
    return found


def cpu_seconds(pid: int) -> float:
    """CPU seconds of a process and all its children."""
    return sum(sum(one.cpu_times()[:2]) for one in members(pid))


class InProcess:
    """The model alone in a process of an environment: the time of a prediction without a server."""

    def __init__(self, python: Path, model: Path, cpus: tuple[int, ...]) -> None:
        words = ["-m", "medserve.environments", "start", ",".join(map(str, cpus)), str(python), str(IN_PROCESS)]
        pipe = subprocess.PIPE
        self._child = process.start(words, stdin=pipe, stdout=pipe, env={"MODEL": str(model)})

    def times(self, images: int, count: int) -> NDArray[np.int64]:
        """int64 nanoseconds of `count` predictions of so many images each."""
        return np.array(json.loads(self._ask(f"time {images} {count}")), np.int64)

    def scores(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The model's scores of one (H, W, C) image: float32 (classes,)."""
        return np.array(json.loads(self._ask(f"score {json.dumps(image.tolist())}")), np.float32)

    def stop(self) -> None:
        """End it."""
        with self._child:  # closes its pipes
            process.stop(self._child)

    def _ask(self, line: str) -> bytes:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(line.encode() + b"\n")
        self._child.stdin.flush()
        if answer := self._child.stdout.readline():
            return answer
        raise CannotRun("the model in process ended: its own lines above say why")
