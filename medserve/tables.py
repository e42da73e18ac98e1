"""Tables of data sets, architectures, formats and load profiles.

A new data set, architecture or format needs a new row in `tables.toml` only, a new load profile one here.
"""

import tomllib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from medserve.errors import unknown
from medserve.spec import Architecture, DatasetSpec, LoadProfile, Mistake, Noun

Row = TypeVar("Row")

OPSET = 18
"""The ONNX opset of every export: the newest that all three converters support (tf2onnx is the limit)."""

ROOFLINE = 0.7
"""Highest valid rate, as a share of the rate that the load generator reaches with the null runtime.

Above it, the latency of the load generator is a part of what is measured.
"""


class Limits(Noun, frozen=True, kw_only=True):
    """The limits by which flags judge a record, as they were when it was measured; the defaults are those of today.

    `lateness`: ratio of a percentile from the intended start to that of the service time, above which the client was
    late. Of the `connections` (requests that the generator has in flight at most, fewer than the wrapper takes, so that
    overload becomes a queue in the client and no refused connection) a share of `busy` may
    be in use before a request counts as having found none free: an answer frees one, which is used again at once.
    `cached`: ratio of second to first latency below which, with 95 % confidence, memory and branch predictors do not
    explain the gain. Of a steady state, `level` is the ratio of two levels up to which they are equal, `stall` the
    share of the rows, and of the time, up to which another level is a stall within it (a closed loop sends few rows
    while a server is slow), and `lasts` the least share that it covers; `warmup` is the largest share, of both, that a
    slower beginning may have to be left out.
    """

    lateness: float = 1.1
    connections: int = 800
    busy: float = 0.9
    cached: float = 0.9
    level: float = 1.05
    stall: float = 0.15
    lasts: float = 0.5
    warmup: float = 0.2


LIMITS = Limits()


INPUT = "image"
OUTPUT = "probabilities"


class Format(Noun, frozen=True, kw_only=True):
    """A file format of artifacts. `path` is relative to the artifact's folder, `runtime` is the default runtime.

    A format that is `compiled_by` a distribution depends on the machine and on the distribution's version.
    """

    name: str
    path: str
    runtime: str
    triton_platform: str | None = None
    compiled_by: str | None = None


_ROWS = tomllib.loads(Path(__file__).with_name("tables.toml").read_text("utf-8"))


def _rows(kind: type[Row], table: str) -> dict[str, Row]:
    return {name: msgspec.convert({"name": name, **row}, kind) for name, row in _ROWS[table].items()}


DATASETS = _rows(DatasetSpec, "datasets")
ARCHITECTURES = _rows(Architecture, "architectures")
FORMATS = _rows(Format, "formats")


def title(name: str) -> str:
    """The title of a framework, format or runtime; the name itself where it has none."""
    found: str = _ROWS["titles"].get(name, name)
    return found


TIMING_MISTAKES: dict[Mistake, str] = {
    "predict": "Keras' predict, which is made for whole data sets, in place of the model's function",
    "unsynchronised": "the clock stops when the call returns, not when the scores have arrived",
    "compile-inside": "the mean of the first hundred calls, including compilation",
    "one-image": "the same image in every call",
    "default-threads": "one thread per core, the default of each framework",
    "json": "images and scores as JSON numbers",
}
"""Common mistakes of published comparisons. Each has a profile below, which shows how it changes a ranking."""


REQUESTS = 460
"""Requests of a measurement, where its time allows: a p99 needs 368, also when a fifth of the record is warm-up."""


def _profiles() -> Iterator[LoadProfile]:
    in_process = partial(LoadProfile, mode="in-process", seconds=5.0, requests=REQUESTS)
    closed = partial(LoadProfile, mode="closed-loop", seconds=10.0, warmup_seconds=2.0, requests=REQUESTS)
    opened = partial(LoadProfile, mode="open-loop", seconds=20.0, warmup_seconds=2.0, requests=REQUESTS)
    for batch in (1, 2, 4, 8, 16, 32, 64, 128):
        yield in_process(name=f"in-process-{batch}", batch=batch, warmup_seconds=1.0)
    for mistake in TIMING_MISTAKES:
        if mistake == "json":
            yield closed(name="closed-1-json", mistake=mistake)
        else:
            warmup = 0.0 if mistake == "compile-inside" else 1.0
            yield in_process(name=f"in-process-1-{mistake}", mistake=mistake, warmup_seconds=warmup)
    for users in (1, 2, 4, 8, 16, 32):
        yield closed(name=f"closed-{users}", users=users)
    # A single user who pauses after each response.
    for milliseconds, seconds in ((10, 10.0), (100, 20.0), (1000, 60.0)):
        yield closed(name=f"idle-{milliseconds}ms", gap_seconds=milliseconds / 1000, seconds=seconds)
    for rate in (10, 50, 200, 500):
        yield opened(name=f"open-{rate}", rate=float(rate))
    for rate in (10, 50, 200, 500):
        yield opened(name=f"poisson-{rate}", arrivals="poisson", rate=float(rate))
    # As many requests per second as open-50, eight at a time.
    yield opened(name="bursts-50", arrivals="bursts", burst=8, rate=50.0)


PROFILES = {profile.name: profile for profile in _profiles()}


def scores_file(form: str, runtime: str) -> str:
    """The file of a runtime's test scores in an artifact's folder; `scores.npy` is that of the default runtime."""
    return "scores.npy" if runtime == FORMATS[form].runtime else f"scores.{runtime}.npy"


def pick(table: Mapping[str, Row], kind: str, name: str) -> Row:
    """The row of that name. Raises BadInput that lists the known names."""
    if name not in table:
        raise unknown(kind, name, table)
    return table[name]
