"""The overhead per request of this wrapper and of the servers of `peers`, beyond the model.

Every server has the same ONNX file on one thread, on the same core as all the others, which are suspended while one is
measured; the client has another core. Each round measures every server, in a new random order: one connection, many
connections, and the model in a process of the same environment. Comparisons are made within the rounds.
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadtest.benchmark.bench import SIZE, Bench, Line, columns, run, tell
from loadtest.benchmark.serving import peers
from loadtest.benchmark.serving.environments import (
    APPLICATIONS,
    InProcess,
    Program,
    cpu_seconds,
    install,
    resume,
    suspend,
    versions,
)
from loadtest.benchmark.serving.peers import BINARY_TENSORS, BYTES, JSON_TENSORS, MODEL, Body, Image, Peer
from loadtest.generator.payload import infer_url
from loadtest.measure.locust_process import free_ports
from loadtest.selftest.reference_client import Block, closed_loop
from medserve import machine, store, wire
from medserve.errors import BadInput, CannotRun
from medserve.numbers import number

CONNECTIONS = 8
WARMUP = 50
READY_SECONDS = 120.0
SOURCE = Path(__file__).parents[3]
MODEL_FILE = "1/model.onnx"
AGREE = 1e-5
"""Largest difference of the scores of two servers: some send them as text."""
OURS = "medserve"
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
        ours = self.server == OURS and self.body == BINARY_TENSORS.words
        before = map(number, (self.p50, self.p99, self.in_process, self.overhead))
        return self.server, self.body, *before, "" if ours else behind, number(self.per_second), number(self.cpu)


class Contestant(msgspec.Struct):
    """A server that is measured: its address, its process, and its requests."""

    name: str
    url: str
    body: Body
    image: Image
    pid: int
    alone: InProcess
    versions: dict[str, str]
    blocks: list[Block] = []
    in_process: list[float] = []
    rates: list[float] = []
    cpu: float = 0.0

    @property
    def request(self) -> bytes:
        """A request for the scores of its image."""
        return wire.http_request(self.url, *self.body.encode(self.image))

    def wait_answering(self, seconds: float) -> None:
        """Suspend it when it answers. Raises CannotRun when it does not, or with other scores than the model's."""
        resume(self.pid)
        deadline = time.monotonic() + seconds
        while True:
            try:
                block = closed_loop(self.url, self.request, 1, 1)
                break
            except (CannotRun, OSError):  # it listens before its model is loaded
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        found, expected = np.asarray(self.body.decode(block.body), np.float32).ravel(), self.alone.scores(self.image)
        if found.shape != expected.shape or np.abs(found - expected).max() > AGREE:
            raise CannotRun(f"{self.name} answers {found[:4].tolist()}...; the model gives {expected[:4].tolist()}...")
        suspend(self.pid)

    def measure(self, count: int) -> None:
        """Measure it once, while all others are suspended."""
        resume(self.pid)
        request = self.request
        closed_loop(self.url, request, 1, WARMUP)
        before = cpu_seconds(self.pid)
        self.blocks.append(closed_loop(self.url, request, 1, count))
        self.cpu += cpu_seconds(self.pid) - before
        self.rates.append(closed_loop(self.url, request, CONNECTIONS, count).per_second)
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
            body=self.body.words,
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


def compare(bench: Bench, model: Path, environments: Path, names: Sequence[str], rounds: int, count: int) -> list[Row]:
    """Measure the wrapper and the peers of these names in `rounds` of `count` requests; the first row is ours.

    `model` is an artifact in ONNX. Raises CannotRun when a peer cannot be installed, does not start, or gives
    other scores than the model.
    """
    chosen = [peer for peer in peers.PEERS if peer.name in names]
    places = []
    for at, peer in enumerate(chosen):
        tell(f"environment of {peer.name}, {at + 1} of {len(chosen)}")
        places.append(install(environments / peer.name.split()[0].lower(), (*peer.packages, *MODEL)))
    with ExitStack() as stack:
        contestants = list(_ours(bench, model, stack))
        for peer, place in zip(chosen, places, strict=True):
            tell(f"starting {peer.name}")
            contestants.append(_theirs(bench, model, peer, place, stack))
        stack.callback(machine.pin, machine.usable_cpus())
        machine.pin(bench.client_cpus)
        random = np.random.default_rng(0)
        for round_ in range(rounds):
            tell(f"round {round_ + 1} of {rounds}")
            for at in random.permutation(len(contestants)):
                contestants[at].measure(count)
    return [one.row(contestants[0]) for one in contestants]


def _ours(bench: Bench, model: Path, stack: ExitStack) -> Iterator[Contestant]:
    """The wrapper twice: with the bodies of its load tests, and with those for MLServer."""
    server = stack.enter_context(bench.serving("onnx_runtime", artifact=model))
    stack.callback(resume, server.pid)  # a suspended process cannot be told to end
    alone = InProcess(Path(sys.executable), model / MODEL_FILE, bench.server_cpus)
    stack.callback(alone.stop)
    url = infer_url(server.url, server.model)
    for body in (BINARY_TENSORS, JSON_TENSORS):
        ours = machine.versions("onnxruntime-gpu", "onnxruntime", "numpy", "uvicorn", "uvloop", "httptools")
        contestant = Contestant(OURS, url, body, golden_image(model), server.pid, alone, ours)
        contestant.wait_answering(READY_SECONDS)
        yield contestant


def _theirs(bench: Bench, model: Path, peer: Peer, programs: Path, stack: ExitStack) -> Contestant:
    scratch = bench.new()
    port, spare, another = free_ports(3)
    settings = {"name": "cells", "implementation": "mlserver_tensors.Cells"}
    (scratch / "model-settings.json").write_text(json.dumps(settings))

    def fill(text: str) -> str:
        return text.format(
            port=port, spare=spare, another=another, source=SOURCE, applications=APPLICATIONS, scratch=scratch
        )

    env = {"MODEL": str(model / MODEL_FILE), "PORT": str(port)} | {name: fill(text) for name, text in peer.variables}
    words = [fill(word) for word in peer.command]
    program = Program([str(programs / words[0]), *words[1:]], bench.server_cpus, env, scratch / f"{peer.name}.log")
    stack.callback(program.stop)
    program.wait_listening(port, READY_SECONDS)
    alone = InProcess(programs / "python", model / MODEL_FILE, bench.server_cpus)
    stack.callback(alone.stop)
    url = f"http://127.0.0.1:{port}{peer.path}"
    contestant = Contestant(peer.name, url, peer.body, golden_image(model), program.pid, alone, versions(programs))
    contestant.wait_answering(READY_SECONDS)
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


def golden_image(model: Path) -> Image:
    """An image whose scores the artifact has, (H, W, C)."""
    with np.load(model / "golden.npz") as golden:
        image: Image = golden["images"][0]
        return image


def targets(rows: Sequence[Row]) -> Iterator[Line]:
    """The overheads of the others less ours. A server without the protocol has less to do, so it has no target."""
    for row in rows:
        if row.server != OURS:
            name, low = f"overhead of {row.server} less ours", None if row.body == BYTES.words else 0.0
            note = f"quartiles of the rounds {number(row.behind_low)} to {number(row.behind_high)}"
            yield Line(part="peers", name=name, value=row.behind, unit="us", low=low, note=note)
