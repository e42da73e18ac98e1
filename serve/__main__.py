"""`python -m serve ARTIFACT`: serve one artifact over HTTP until told to stop.

NumPy and the frameworks size their thread pools when they are imported, so nothing here imports them before the process
is pinned and its environment set.
"""

import gc
import logging
import os
import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import typer

from medserve import errors, machine, store
from medserve.errors import BadInput
from medserve.glossary import GLOSSARY
from medserve.models import Artifact
from medserve.spec import Deployment, Device, Dispatch
from medserve.tables import FORMATS, pick

Value = TypeVar("Value")
PORT = "MEDSERVE_PORT"
"""Environment variable that the health check of a container reads too."""

GROWTH_BYTES = 64 << 20
"""Bytes that one client can make the process grow by, above what the largest request takes."""
RECEIVED_BYTES = 24 << 20
"""Bytes that requests may hold together while they arrive, above the largest body."""


def serve(
    folder: Annotated[
        Path,
        typer.Argument(metavar="ARTIFACT", help="Folder of an exported model; it is a program."),
    ],
    runtime: Annotated[str | None, typer.Option(help="Runtime.", show_default="the format's own")] = None,
    device: Annotated[Device, typer.Option(help="Where the model runs.")] = "cpu",
    threads: Annotated[int, typer.Option(help="Threads of the runtime; 0: as many as usable cores.")] = 1,
    batch_sizes: Annotated[
        str, typer.Option(help="Batches that are run once before ready; others are padded up to the next.")
    ] = "1,32",
    dispatch: Annotated[Dispatch, typer.Option(help=GLOSSARY["Dispatch"])] = "inline",
    queue: Annotated[int, typer.Option(help=GLOSSARY["Queue bound"])] = 128,
    batch_images: Annotated[
        int, typer.Option(help="Images of waiting requests that the thread puts together; 1: each request by itself.")
    ] = 1,
    instances: Annotated[int, typer.Option(help=GLOSSARY["Instances"])] = 1,
    batch_delay: Annotated[
        float, typer.Option(help="Milliseconds that the thread waits for more of them, where there were more.")
    ] = 1.0,
    deadline: Annotated[float | None, typer.Option(help=GLOSSARY["Deadline"])] = None,
    patience: Annotated[
        float,
        typer.Option(help="Inference timeout in seconds; on expiry the runtime counts as hung, and the server ends."),
    ] = 60.0,
    options: Annotated[str, typer.Option(metavar="JSON", help="Options of the runtime as one JSON object.")] = "{}",
    deployment: Annotated[
        str | None, typer.Option(metavar="JSON", help="All of the above as one JSON object, instead of them.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, envvar=PORT, help="Port to listen on; 0 takes any free one.")
    ] = 8000,
    keep_alive: Annotated[
        float, typer.Option(min=1, help="Seconds after which a connection without requests is closed.")
    ] = 75.0,
    cpus: Annotated[str, typer.Option(help="CPUs to run on, as in 0,1.", show_default="all")] = "",
    sha256: Annotated[
        str | None,
        typer.Option(
            metavar="DIGEST",
            help="Serve only this artifact: the SHA-256 of its artifact.json, which lists those of all its files.",
        ),
    ] = None,
) -> None:
    """Serve an artifact by the Open Inference Protocol v2 over HTTP. SIGTERM and Ctrl-C end it when all is answered.

    An artifact is a program: its framework executes the model file (TorchScript, SavedModel, AOTInductor and others)
    with the rights of this process, when it is loaded and at every request. Digests and certificate tell that it was
    not changed, not who made it. Serve only what you or somebody you trust exported, and pin it with --sha256.

    Example: medserve serve artifacts/cells --threads 1 --cpus 0 --port 8000
    """
    if port and os.environ.get(PORT) not in (None, "", str(port)):
        raise BadInput(f"--port is {port}, but {PORT} is {os.environ[PORT]}; set {PORT} alone")
    manifest, digest = _read_manifest(folder, sha256)
    if deployment is None:
        asked = Deployment(
            artifact=folder.name,
            runtime=runtime or pick(FORMATS, "format", manifest.format).runtime,
            device=device,
            threads=threads,
            batch_sizes=_numbers("--batch-sizes", batch_sizes),
            dispatch=dispatch,
            queue=queue,
            batch_images=batch_images,
            instances=instances,
            batch_delay_ms=batch_delay,
            deadline_ms=deadline,
            patience_seconds=patience,
            options=_decode("--options", options, dict[str, Any]),
        )
    else:
        asked = _decode("--deployment", deployment, Deployment)
    asked.check()
    if asked.keeps_memory:
        machine.keep_memory()
    _pin(_numbers("--cpus", cpus))
    os.environ.update(machine.thread_environment(asked.threads))
    _serve(folder, digest, asked, host, port, keep_alive)


def _serve(folder: Path, digest: str, deployment: Deployment, host: str, port: int, keep_alive: float) -> None:
    from medserve import plugins
    from medserve.timing import now
    from serve import http_server, logs, scheduler
    from serve.app import App
    from serve.protocol import CONNECTIONS, Limits
    from serve.runtimes import open_fitting, open_runtime

    logs.begin()
    with http_server.bind(host, port) as listener:
        # Opening would import it too: apart, the cost of the library is not that of the model.
        plugins.load("serve.runtimes", deployment.runtime)
        imported = now()
        runtime, artifact, deployment, too_large = open_fitting(folder, deployment, digest=digest)
        if too_large:
            logging.getLogger("medserve").warning(str(too_large), {"largest_batch": deployment.batch_sizes[-1]})
        loading = {"imported_ns": imported, "load_seconds": (now() - imported) / 1e9}
        further = [open_runtime(folder, deployment, digest=digest)[0] for _ in range(1, deployment.instances)]
        infer = scheduler.dispatch([runtime, *further], deployment, len(artifact.checkpoint.classes))
        application = App(artifact, deployment, infer)
        watched = (infer, application.decoding)
        scheduler.watch(watched, deployment.patience_seconds, lambda: _give_up(deployment))
        limits = Limits(application.largest_body + RECEIVED_BYTES, keep_alive)
        # What is loaded lives as long as the process: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()

        def announce(http: dict[str, str]) -> None:
            address, bound = listener.getsockname()[:2]
            url = f"http://[{address}]:{bound}" if ":" in address else f"http://{address}:{bound}"
            collector = {"collector_enabled": gc.isenabled(), "frozen_objects": gc.get_freeze_count()}
            memory = {"largest_request_bytes": application.largest_request, "held_bytes": limits.held_bytes}
            facts = {**machine.process_facts(), **http, **collector, **loading, **memory, "connections": CONNECTIONS}
            fields = {"url": url, "model": artifact.name, "runtime": deployment.runtime, "pid": os.getpid()}
            fields["sha256"] = digest
            logging.getLogger("medserve").info("serving", fields)
            if os.environ.get(errors.EVENTS):
                errors.print_event({"event": "ready", **fields, "process": {**facts, "runtime": runtime.facts()}})
            else:
                where = f"{deployment.runtime} on {deployment.device}, threads: {deployment.threads or 'all'}"
                print(f"{url}/v2/models/{artifact.name} is ready ({where}). Ctrl-C stops it.")
                largest, growth = application.largest_request >> 20, GROWTH_BYTES >> 20
                print(f"Memory: the largest request takes {largest} MiB, all together {growth} MiB more.")
                print(f"{folder / store.ARTIFACT}: SHA-256 {digest}", flush=True)

        http_server.serve(application, listener, limits, announce)


def _give_up(deployment: Deployment) -> None:
    """End a process in which a prediction or a decoding hangs: nothing else can tell its clients and its parent."""
    reason = f"the runtime hangs: {deployment.runtime} has not answered for {deployment.patience_seconds:g} s"
    logging.getLogger("medserve").critical("ended", {"model": deployment.artifact, "reason": reason})
    if os.environ.get(errors.EVENTS):
        errors.print_event({"event": "error", "reason": reason})
    os._exit(1)


def _read_manifest(folder: Path, reviewed: str | None) -> tuple[Artifact, str]:
    """The manifest and its SHA-256. Raises BadInput when that is not `reviewed`, where it is given."""
    if reviewed is not None and not re.fullmatch("[0-9a-fA-F]{64}", reviewed):
        raise BadInput(
            f"--sha256 is {reviewed!r}; expected the 64 hexadecimal digits that `medserve export` or a server printed"
        )
    path = folder / store.ARTIFACT
    digest = None if reviewed is None else reviewed.lower()
    manifest = store.read_json(path, Artifact, digest)
    return manifest, digest or store.sha256(path)


def _decode(option: str, text: str, kind: type[Value]) -> Value:
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.MsgspecError as error:
        raise BadInput(f"{option} is not a {kind.__name__} in JSON: {error}") from None


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        raise BadInput(f"{option} is {text!r}; expected numbers with commas, as in 1,32") from None


def _pin(cpus: tuple[int, ...]) -> None:
    usable = machine.usable_cpus()
    if absent := set(cpus) - set(usable):
        raise BadInput(f"--cpus names {sorted(absent)}; this process may use {list(usable)}")
    machine.pin(cpus)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(serve)
    errors.main(lambda: app(prog_name="medserve serve"))
