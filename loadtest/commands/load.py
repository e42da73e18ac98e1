"""Implements `medserve load`: its options become a profile and a plan for a server that is running."""

import tempfile
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from loadtest.analysis.slo_search import MOST_SECONDS
from loadtest.analysis.slo_trials import parse_objective
from loadtest.commands import load_runs, slo_search
from loadtest.commands.shared import Batch, Json, Seed, Warmup
from loadtest.generator import payload, schedule
from loadtest.generator.payload import Load
from medserve import machine, plugins
from medserve.errors import BadInput
from medserve.spec import BODIES, OIP, Arrivals, LoadProfile


def load(
    url: Annotated[str, typer.Option(help="Address of a server of the Open Inference Protocol v2.")],
    model: Annotated[str | None, typer.Option(help="Model.", show_default="the server's only one")] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Requests per second by arrival schedule (open loop).")
    ] = None,
    arrivals: Annotated[
        Arrivals | None, typer.Option(help="Kind of schedule.", show_default="constant; poisson for an objective")
    ] = None,
    burst: Annotated[int, typer.Option(min=1, help="Requests that arrive together, for --arrivals bursts.")] = 8,
    trace: Annotated[
        Path | None, typer.Option(help="File of arrival times in seconds, one per line, for --arrivals trace.")
    ] = None,
    users: Annotated[int, typer.Option(min=1, help="Back-to-back users (closed loop), without a rate.")] = 1,
    gap: Annotated[float, typer.Option(min=0.0, help="Seconds that a user waits after an answer.")] = 0.0,
    ladder: Annotated[
        str | None, typer.Option(help="Numbers of users such as 1,2,4,8: one run each, to find the saturation point.")
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(help="Such as p99<50ms: find the highest rate that meets it; --rate is the first to try."),
    ] = None,
    check: Annotated[
        str | None,
        typer.Option(help="Such as p99<50ms: does --rate meet it? Exit code 1: no, or undecided."),
    ] = None,
    max_rate: Annotated[
        float | None, typer.Option(min=1.0, help="Highest rate to try.", show_default="70 % of the generator's own")
    ] = None,
    minutes: Annotated[
        float, typer.Option(min=0.1, help="Minutes of load after which the search for an objective ends.")
    ] = MOST_SECONDS / 60,
    batch: Batch = 1,
    body: Annotated[
        str, typer.Option(help=f"What requests and answers look like: {', '.join(plugins.names(BODIES))}.")
    ] = OIP,
    path: Annotated[
        str, typer.Option(help="Path of a prediction, where the body has another.", show_default="the body's own")
    ] = "",
    images: Annotated[
        Path | None, typer.Option(help="Images to send, .npy, uint8 (N, H, W, C).", show_default="random")
    ] = None,
    expect: Annotated[
        Path | None, typer.Option(help="Scores of the images, .npy, float32 (N, classes): others count as failures.")
    ] = None,
    audit: Annotated[
        bool, typer.Option("--audit", help="Afterwards, send images twice: does the server cache?")
    ] = False,
    processes: Annotated[int, typer.Option(min=1, help="Processes of Locust that share the load.")] = 1,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="Seconds of measuring, after the warm-up; of a first trial for an objective.",
            show_default="10; 3 for an objective",
        ),
    ] = None,
    warmup: Warmup = 1.0,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds without an answer after which a request fails.")] = (
        payload.TIMEOUT_SECONDS
    ),
    seed: Seed = 0,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 1 also without a steady state.")] = False,
    out: Annotated[Path | None, typer.Option(help="Parquet file for the raw record of every request.")] = None,
    json: Json = False,
) -> None:
    """Load-test any server of the Open Inference Protocol v2, this program's or another, or one of another --body.

    Exit code 1 when requests failed or were answered wrongly, and when the generator was late.

    Example: medserve load --url http://127.0.0.1:8000 --objective "p99<50ms"
    """
    if check is not None and (objective is not None or rate is None):
        raise BadInput("--check asks about a --rate; give one, and no --objective")
    asked_for = objective or check
    slo = None if asked_for is None else parse_objective(asked_for)
    steps = None if ladder is None else parse_ladder(ladder)
    plain = LoadProfile(
        name="manual", mode="closed-loop", batch=batch, users=users, rate=rate, burst=burst, gap_seconds=gap,
        seconds=seconds or (10.0 if slo is None or check else 3.0), warmup_seconds=warmup,
    )  # fmt: skip
    profile = load_profile(
        plain, arrivals, trace, ladder=steps is not None, objective=slo is not None, audit=audit
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        asked = Load(
            url=url.rstrip("/"), model=model or "", profile=profile, images=_absolute(images),
            expected=_absolute(expect), out=_absolute(out), seed=seed, cpus=machine.divide_cpus(1)[1],
            timeout_seconds=timeout, body=body, path=path, audit=f"{scratch}/audit.parquet" if audit else None,
        )  # fmt: skip
        numbered = slo is not None or steps is not None
        runs = load_runs.Runs(fitted(asked), processes, Path(scratch), numbered, strict)
        if slo is not None and check is not None:
            slo_search.check(runs, slo, rate or 0.0, json)
        elif slo is not None:
            slo_search.search(runs, slo, rate, max_rate, minutes, json)
        elif steps is not None:
            load_runs.ladder(runs, steps, json)
        else:
            load_runs.single(runs, json)


def parse_ladder(text: str) -> tuple[int, ...]:
    """`1,2,4` as ascending numbers of users. Raises BadInput for anything else."""
    try:
        steps = tuple(sorted({int(word) for word in text.split(",")}))
    except ValueError:
        steps = ()
    if len(steps) < 2 or steps[0] < 1:
        raise BadInput(f"ladder {text!r}; expected two or more numbers of users, such as 1,2,4,8")
    return steps


def load_profile(
    plain: LoadProfile, arrivals: Arrivals | None, trace: Path | None, *, ladder: bool, objective: bool, audit: bool
) -> LoadProfile:
    """The profile with its mode and schedule. Raises BadInput for options that contradict one another."""
    rate, users = plain.rate, plain.users
    if trace is not None and arrivals is None:
        arrivals = "trace"
    scheduled = rate is not None or arrivals is not None or objective
    for clash, words in (
        (ladder and objective, "--ladder and --objective are two different questions; give one of them"),
        (ladder and scheduled, "--ladder is of back-to-back users; leave out --rate and --arrivals"),
        (
            scheduled and (plain.gap_seconds > 0 or users > 1),
            "a schedule has no users that wait; leave out --users and --gap",
        ),
        ((arrivals == "trace") != (trace is not None), "--arrivals trace and --trace FILE belong together"),
        (arrivals == "trace" and (rate is not None or objective), "a trace has its own rate; leave out --rate"),
        (audit and (scheduled or ladder or users > 1), "--audit needs one back-to-back user and no other load"),
        (scheduled and arrivals != "trace" and rate is None and not objective, "--arrivals needs a --rate"),
    ):
        if clash:
            raise BadInput(words)
    profile = msgspec.structs.replace(
        plain,
        mode="open-loop" if scheduled else "closed-loop",
        arrivals=arrivals or ("poisson" if objective else "constant"),
        burst=plain.burst if arrivals == "bursts" else 1,
        trace=_absolute(trace),
    )
    if arrivals == "trace":
        schedule.arrivals(profile, 0)
    return profile


def fitted(asked: Load) -> Load:
    """The load with what the running server says of its model. Raises BadInput for files that do not fit it."""
    if asked.out is not None and not (folder := Path(asked.out).parent).is_dir():
        raise BadInput(f"{asked.out}: no folder {folder}; make it, or name another --out")
    if asked.expected is not None and asked.images is None:
        raise BadInput("--expect are scores of --images; give these too")
    opened = None if asked.images is None else payload.open_images(Path(asked.images))
    if asked.expected is not None and opened is not None:
        payload.open_scores(Path(asked.expected), len(opened))
    if asked.body.startswith(OIP):
        model, shape = payload.describe(asked.url, asked.model or None)
    elif opened is None:
        raise BadInput(f"a server of the body {asked.body} does not say what images it takes; give --images")
    else:
        plugins.literals(BODIES, asked.body)
        model, shape = asked.model or "model", opened.shape[1:]
    if opened is not None and opened.shape[1:] != shape:
        raise BadInput(f"{asked.images}: images of {opened.shape[1:]}; {model} takes {shape}")
    return msgspec.structs.replace(asked, model=model, shape=shape)


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.resolve())
