"""Tables of data sets, architectures, formats and load profiles.

A new data set, architecture or format needs a new row in `tables.toml` only, a new load profile one here.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from medserve.errors import BadInput, check_name, unknown
from medserve.models import Architecture, DatasetSpec
from medserve.numbers import plain
from medserve.spec import Arrivals, LoadProfile, Mistake, Mode, Noun

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
BURST = 8
"""Requests that arrive together, where a study does not say."""

SCHEDULES: dict[str, Arrivals] = {"open": "constant", "poisson": "poisson", "bursts": "bursts"}
"""The arrivals of an open loop, by the first word of its name."""
_LASTS: dict[Mode, tuple[float, float]] = {
    "in-process": (5.0, 1.0),
    "closed-loop": (10.0, 2.0),
    "open-loop": (20.0, 2.0),
}
DEFAULTS = {
    mode: LoadProfile(name=mode, mode=mode, seconds=seconds, warmup_seconds=warmup, requests=REQUESTS)
    for mode, (seconds, warmup) in _LASTS.items()
}
"""The profiles of which every other one is a change."""


def profile(mode: Mode, **terms: Any) -> LoadProfile:
    """The profile of some terms, with the durations of its mode where they are not given, named by its terms."""
    made = msgspec.structs.replace(DEFAULTS[mode], **terms)
    return msgspec.structs.replace(made, name=profile_name(made))


def profile_name(profile: LoadProfile) -> str:
    """A name that says all terms of a profile but its durations."""
    if profile.mode == "in-process":
        words = [f"in-process-{profile.batch}"]
    else:
        if profile.gap_seconds:
            words = [f"idle-{plain(profile.gap_seconds * 1000)}ms"] + [f"u{profile.users}"] * (profile.users > 1)
        elif profile.mode == "closed-loop":
            words = [f"closed-{profile.users}"]
        else:
            word = next((word for word, arrivals in SCHEDULES.items() if arrivals == profile.arrivals), "trace")
            if profile.load is None:
                words = [f"{word}-{plain(profile.rate or 0.0)}"]
            else:
                words = [f"load-{plain(round(100 * profile.load, 6))}"] + [word] * (profile.arrivals != "poisson")
            words += [f"x{profile.burst}"] * (profile.burst not in (1, BURST))
        words += [f"b{profile.batch}"] * (profile.batch > 1)
    words += ["as-json"] * (profile.payload == "json") + [profile.mistake or ""]
    return "-".join(filter(None, words))


def _profiles() -> Iterator[LoadProfile]:
    for batch in (1, 2, 4, 8, 16, 32, 64, 128):
        yield profile("in-process", batch=batch)
    for mistake in TIMING_MISTAKES:
        if mistake == "json":
            yield profile("closed-loop", mistake=mistake)
        else:
            yield profile("in-process", mistake=mistake, warmup_seconds=0.0 if mistake == "compile-inside" else 1.0)
    for users in (1, 2, 4, 8, 16, 32):
        yield profile("closed-loop", users=users)
    # A single user who pauses after each response.
    for milliseconds, seconds in ((10, 10.0), (100, 20.0), (1000, 60.0)):
        yield profile("closed-loop", gap_seconds=milliseconds / 1000, seconds=seconds)
    for arrivals in ("constant", "poisson"):
        for rate in (10.0, 50.0, 200.0, 500.0):
            yield profile("open-loop", arrivals=arrivals, rate=rate)
    for share in (0.2, 0.5, 0.8, 0.9):
        yield profile("open-loop", arrivals="poisson", load=share)
    # As many requests per second as open-50, eight at a time.
    yield profile("open-loop", arrivals="bursts", burst=BURST, rate=50.0)


PROFILES = {one.name: one for one in _profiles()}


def find_profile(name: str) -> LoadProfile:
    """A profile by its name, which may have another number than those of PROFILES. Raises BadInput."""
    if (found := PROFILES.get(name) or _numbered(name)) is not None:
        return found
    kind, _, number = name.rpartition("-")
    words = (*SCHEDULES, "load", "in-process", "closed", "idle")
    near = [f"{one}-{number}" for one in get_close_matches(kind, words, n=1)]
    others = [known for known in near if known not in PROFILES and _numbered(known)]
    error = unknown("profile", name, [*PROFILES, *others])
    raise BadInput(
        f"{error}; and any number in in-process-BATCH, closed-USERS, open-RATE, poisson-RATE, load-PERCENT, idle-GAPms"
    )


def _numbered(name: str) -> LoadProfile | None:
    """A profile of any number, by its name; null for other names."""
    if found := re.fullmatch(r"(in-process|closed|idle|open|poisson|bursts|load)-([0-9.]{1,12})(?:ms)?", name):
        with suppress(ValueError):
            kind, number = found[1], float(found[2])
            if kind in SCHEDULES:
                burst = BURST if kind == "bursts" else 1
                made = profile("open-loop", arrivals=SCHEDULES[kind], rate=number, burst=burst)
            elif kind == "load":
                made = profile("open-loop", arrivals="poisson", load=number / 100)
            elif kind == "in-process":
                made = profile("in-process", batch=int(number))
            elif kind == "closed":
                made = profile("closed-loop", users=int(number))
            else:
                made = profile("closed-loop", gap_seconds=number / 1000)
            if made.name == name and number > 0:
                return made
    return None


SINGLE = "single"
"""The folder of an artifact with code that was compiled for one image, beside that for any batch."""
FOR_GPU = "cuda"
"""The folder of an artifact with code that was compiled for a GPU, beside that for the processor."""
ADAPTER = "adapter.json"
"""Beside a model into whose graph its way in and out cannot be put: a `Contract`."""


def scores_file(form: str, runtime: str) -> str:
    """The file of a runtime's test scores in an artifact's folder; `scores.npy` is that of the default runtime."""
    return "scores.npy" if runtime == FORMATS[form].runtime else f"scores.{runtime}.npy"


def is_path(dataset: str) -> bool:
    """Whether a data set is given as the path of one's own images: it has a slash, or ends in .npz."""
    return "/" in dataset or dataset.endswith(".npz")


def dataset_name(dataset: str) -> str:
    """The name of a data set; of a path its last part without .npz, with `_` for what cannot be part of a name.

    Raises BadInput for a path that gives no name, or the name of a data set of the table.
    """
    if not is_path(dataset):
        return dataset
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(dataset).name.removesuffix(".npz"))
    check_name("data set", name)
    if name in DATASETS:
        raise BadInput(
            f"{dataset}: is called as the data set {name} of `medserve list`; rename it, or, for an archive of that "
            "set, put it into MEDMNIST_ROOT and use --unofficial"
        )
    return name


def check_size(dataset: DatasetSpec, size: int) -> None:
    """Raise BadInput when the data set does not come at `size` pixels."""
    if dataset.sizes and size not in dataset.sizes:
        raise BadInput(f"{dataset.name} does not come at {size} px; there is: {', '.join(map(str, dataset.sizes))}")
    if not 8 <= size <= 1024:
        raise BadInput(f"size {size} px; expected 8 to 1024")


def check_dataset(dataset: str) -> None:
    """Raise BadInput for what is neither a data set of the table nor a path."""
    if dataset_name(dataset) == dataset and dataset not in DATASETS:
        raise BadInput(f"{unknown('data set', dataset, DATASETS)}; a folder of one's own has a slash: ./{dataset}")


def pick(table: Mapping[str, Row], kind: str, name: str) -> Row:
    """The row of that name. Raises BadInput that lists the known names."""
    if name not in table:
        raise unknown(kind, name, table)
    return table[name]
