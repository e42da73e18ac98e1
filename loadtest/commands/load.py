"""Implements `medserve load`: its options become a profile and a plan for a server that is running."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from loadtest.analysis.slo_search import parse_objective
from loadtest.commands import load_runs, slo_search
from loadtest.commands.shared import Batch, Json, Seconds, Seed, Warmup
from loadtest.generator import payload, schedule
from loadtest.generator.payload import Load
from medserve import machine
from medserve.errors import BadInput
from medserve.spec import Arrivals, LoadProfile


def command(
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
        str | None, typer.Option(help="Such as p99<50ms: find the highest rate that meets it, starting at --rate.")
    ] = None,
    max_rate: Annotated[
        float | None, typer.Option(min=1.0, help="Highest rate to try.", show_default="70 % of the generator's own")
    ] = None,
    batch: Batch = 1,
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
    seconds: Seconds = 10.0,
    warmup: Warmup = 1.0,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds without an answer after which a request fails.")] = (
        payload.TIMEOUT_SECONDS
    ),
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Parquet file for the raw record of every request.")] = None,
    json: Json = False,
) -> None:
    """Load-test any server of the Open Inference Protocol v2, this program's or another.

    Exit code 1 when requests failed or were answered wrongly, when the generator was late, and when the server had no
    steady state. Example: medserve load --url http://127.0.0.1:8000 --objective "p99<50ms"
    """
    slo = None if objective is None else parse_objective(objective)
    steps = None if ladder is None else parse_ladder(ladder)
    profile = load_profile(
        rate=rate, arrivals=arrivals, burst=burst, trace=trace, users=users, gap=gap, batch=batch, seconds=seconds,
        warmup=warmup, ladder=steps is not None, objective=slo is not None, audit=audit,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        runs = load_runs.Runs(
            plan(
                url, model, profile, images=images, expect=expect, timeout=timeout, seed=seed, out=out,
                audit=Path(scratch) / "audit.parquet" if audit else None,
            ),
            processes, Path(scratch), numbered=slo is not None or steps is not None,
        )  # fmt: skip
        if slo is not None:
            slo_search.search(runs, slo, rate, max_rate, json)
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
    *,
    rate: float | None,
    arrivals: Arrivals | None,
    burst: int,
    trace: Path | None,
    users: int,
    gap: float,
    batch: int,
    seconds: float,
    warmup: float,
    ladder: bool,
    objective: bool,
    audit: bool,
) -> LoadProfile:
    """The options of the command line as a profile. Raises BadInput for options that contradict one another."""
    if trace is not None and arrivals is None:
        arrivals = "trace"
    scheduled = rate is not None or arrivals is not None or objective
    for clash, words in (
        (ladder and objective, "--ladder and --objective are two different questions; give one of them"),
        (ladder and scheduled, "--ladder is of back-to-back users; leave out --rate and --arrivals"),
        (scheduled and (gap > 0 or users > 1), "a schedule has no users that wait; leave out --users and --gap"),
        ((arrivals == "trace") != (trace is not None), "--arrivals trace and --trace FILE belong together"),
        (arrivals == "trace" and (rate is not None or objective), "a trace has its own rate; leave out --rate"),
        (audit and (scheduled or ladder or users > 1), "--audit needs one back-to-back user and no other load"),
        (scheduled and arrivals != "trace" and rate is None and not objective, "--arrivals needs a --rate"),
    ):
        if clash:
            raise BadInput(words)
    profile = LoadProfile(
        name="manual",
        mode="open-loop" if scheduled else "closed-loop",
        batch=batch,
        users=users,
        rate=rate,
        arrivals=arrivals or ("poisson" if objective else "constant"),
        burst=burst if arrivals == "bursts" else 1,
        trace=None if trace is None else str(trace.resolve()),
        gap_seconds=gap,
        seconds=seconds,
        warmup_seconds=warmup,
    )
    if arrivals == "trace":
        schedule.arrivals(profile, 0)
    return profile


def plan(
    url: str,
    model: str | None,
    profile: LoadProfile,
    *,
    images: Path | None,
    expect: Path | None,
    timeout: float,
    seed: int,
    out: Path | None,
    audit: Path | None,
) -> Load:
    """The load for a running server, which is asked what it takes. Raises BadInput for files that do not fit it."""
    if out is not None and not out.resolve().parent.is_dir():
        raise BadInput(f"{out}: no folder {out.resolve().parent}; make it, or name another --out")
    if expect is not None and images is None:
        raise BadInput("--expect are scores of --images; give these too")
    opened = None if images is None else payload.open_images(images)
    if expect is not None and opened is not None:
        payload.open_scores(expect, len(opened))
    url = url.rstrip("/")
    model, shape = payload.describe(url, model)
    if opened is not None and opened.shape[1:] != shape:
        raise BadInput(f"{images}: images of {opened.shape[1:]}; {model} takes {shape}")
    return Load(
        url=url,
        model=model,
        profile=profile,
        images=None if images is None else str(images.resolve()),
        shape=shape,
        expected=None if expect is None else str(expect.resolve()),
        out=None if out is None else str(out.resolve()),
        seed=seed,
        cpus=machine.divide_cpus(1)[1],
        timeout_seconds=timeout,
        audit=None if audit is None else str(audit),
    )
