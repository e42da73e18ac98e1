"""What is asked of `medserve load`, checked: its options as a profile and a plan for a server that is there."""

from pathlib import Path

from loadtest.generator import payload, schedule
from loadtest.generator.payload import Load
from medserve import machine
from medserve.errors import BadInput
from medserve.spec import Arrivals, LoadProfile


def parse_ladder(text: str) -> tuple[int, ...]:
    """`1,2,4` as ascending numbers of users. Raises BadInput for anything else."""
    try:
        rungs = tuple(sorted({int(word) for word in text.split(",")}))
    except ValueError:
        rungs = ()
    if len(rungs) < 2 or rungs[0] < 1:
        raise BadInput(f"ladder {text!r}; expected two or more numbers of users, such as 1,2,4,8")
    return rungs


def profile(
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
    """The options of the command line as a profile. Raises BadInput for those that contradict one another."""
    if trace is not None and arrivals is None:
        arrivals = "trace"
    opened = rate is not None or arrivals is not None or objective
    for clash, words in (
        (ladder and objective, "--ladder and --objective are two different questions; ask one"),
        (ladder and opened, "--ladder is of users back to back; leave out --rate and --arrivals"),
        (opened and (gap > 0 or users > 1), "a schedule has no users that wait; leave out --users and --gap"),
        ((arrivals == "trace") != (trace is not None), "--arrivals trace and --trace FILE belong together"),
        (arrivals == "trace" and (rate is not None or objective), "a trace has its own rate; leave out --rate"),
        (audit and (opened or ladder or users > 1), "--audit is made by one user; ask for nothing else"),
        (opened and arrivals != "trace" and rate is None and not objective, "--arrivals needs a --rate"),
    ):
        if clash:
            raise BadInput(words)
    made = LoadProfile(
        name="by-hand",
        mode="open-loop" if opened else "closed-loop",
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
        schedule.arrivals(made, 0)
    return made


def plan(
    url: str,
    model: str | None,
    profile: LoadProfile,
    *,
    images: Path | None,
    expect: Path | None,
    patience: float,
    seed: int,
    out: Path | None,
    audit: Path | None,
) -> Load:
    """The load for a server that is there and says what it takes. Raises BadInput for files that do not fit it."""
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
        patience=patience,
        audit=None if audit is None else str(audit),
    )
