"""What the runner and its jobs tell one another: what to measure, where data lie, why something came to nothing."""

from typing import Any

from medserve.result import SelfTestOutcome
from medserve.spec import Cell, Deployment, Device, Noun


class Launch(Noun, frozen=True, kw_only=True):
    """One fresh process of one deployment and the cells it measures in order. Paths are absolute.

    `images` is an .npy file uint8 (N, H, W, C); `expected` an .npy file float32 (N, classes) of certified scores,
    null for a runtime that computes nothing. `stages`: in process, place, run and fetch are timed one by one, too.
    """

    study: str
    index: int
    cells: tuple[Cell, ...]
    artifact: str
    results: str
    images: str
    expected: str | None
    server_cpus: tuple[int, ...]
    client_cpus: tuple[int, ...]
    seed: int
    selftest: SelfTestOutcome | None = None
    stages: bool = True


class Setting(Noun, frozen=True, kw_only=True):
    """A value of a runtime's option that may make it faster, why, and the document that offers it.

    `device` is the only one on which it means something, null where it does on each.
    """

    option: str
    value: str
    why: str
    source: str
    device: Device | None = None


class Candidate(Noun, frozen=True, kw_only=True):
    """Options of a runtime that were tried: the median latency (ms) of each batch size, in each launch.

    `faults` are the minor page faults of a call, of the batch size with the most, in each launch. `reason` says why the
    options cannot be taken, null where they can.
    """

    options: dict[str, str]
    medians_ms: dict[int, tuple[float, ...]]
    faults: tuple[float, ...] = ()
    reason: str | None = None


class Tuned(Noun, frozen=True, kw_only=True):
    """`tuned/<deployment>.json`: the best options of a deployment's runtime for one artifact on one machine.

    `settings` were tried, alone and together. `ratio` is the geometric mean over batch sizes of the latency with the
    `chosen` options over that with the defaults; among equally fast ones, those with fewer page faults are chosen.
    """

    deployment: Deployment
    machine: dict[str, Any]
    settings: tuple[Setting, ...]
    candidates: tuple[Candidate, ...]
    chosen: dict[str, str]
    ratio: float
    seconds: float


class Prepared(Noun, frozen=True, kw_only=True):
    """A data set that lies unpacked in `folder` as {split}_images.npy and {split}_labels.npy."""

    dataset: str
    size: int
    digest: str
    unofficial: bool
    folder: str
    classes: tuple[str, ...]


class Failure(Noun, frozen=True, kw_only=True):
    """`failures/<stage>-<name>.json`: why a data set, a training or an export came to nothing."""

    stage: str
    name: str
    reason: str
