"""The files that a measurement writes: the result of a launch with its windows, and the load-generator self-test."""

from typing import Any, ClassVar, Literal

import msgspec

from medserve.models import Artifact
from medserve.spec import Cell, Device, Noun, Precision
from medserve.tables import LIMITS, ROOFLINE, Limits

SCHEMA = 2
"""Version of the manifests below, and of the rows that are made of them.

They are additive: every version from OLDEST on is read, later ones too. Unknown fields are ignored, and a new field
has a default, which is what holds for older records.
"""
OLDEST = 2


class Gpu(Noun, frozen=True, kw_only=True):
    """The GPU at one moment: clock of its processors, degrees Celsius, power; what slows it; others that use it."""

    clock_mhz: int
    temperature: int
    watts: float
    slowed_by: tuple[str, ...] = ()
    others: int = 0


class Window(Noun, frozen=True, kw_only=True):
    """The system during an interval of a measurement; values that it does not report are null.

    `stolen` and `others` are CPU seconds of the measured cores that the hypervisor and other processes took;
    `throttled` counts throttling events by heat or CPU quota, `switches` involuntary context switches of the server
    and the client. `gpu` is that at its end, null without one. `reason` says why the window is disturbed, null if it is
    not.
    """

    start_ns: int
    end_ns: int
    stolen: float | None
    others: float | None
    throttled: int | None
    switches: int | None
    load: float | None
    reason: str | None
    gpu: Gpu | None = None


class Check(Noun, frozen=True, kw_only=True):
    """A check of the self-test: measured value, true value and allowed difference; `ok` is null if it is not judged.

    `low` and `high` are the 95 % interval of what was measured, null where there is none; only one that lies beyond the
    limit fails.
    """

    name: str
    measured: float | None
    low: float | None = None
    high: float | None = None
    truth: float | None
    limit: float | None
    unit: str
    ok: bool | None


class SelfTest(Noun, frozen=True, kw_only=True):
    """`selftest/selftest.json`: the load generator tested on servers with known delays. `files` as in Checkpoint.

    `roofline` maps an image side in pixels to the requests per second that the load generator reaches with the null
    runtime; at most the share `roofline_limit` of it makes a valid row.
    """

    oldest: ClassVar[int] = OLDEST
    schema: int = SCHEMA
    started: str
    seconds: float
    roofline: dict[int, float]
    roofline_limit: float = ROOFLINE
    checks: tuple[Check, ...]
    machine: dict[str, Any] = msgspec.field(default_factory=dict)
    files: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The failed checks."""
        return tuple(check for check in self.checks if check.ok is False)

    @property
    def verdict(self) -> "SelfTestOutcome":
        """What the records that are measured after it carry."""
        more = f" and {len(self.failed) - 1} more" if len(self.failed) > 1 else ""
        failed = f"load-generator self-test failed: {self.failed[0].name}{more}" if self.failed else None
        return SelfTestOutcome(started=self.started, failed=failed)


class Peaks(Noun, frozen=True, kw_only=True):
    """`peaks/<threads>.json`: what this machine computes and reads at most, with so many threads on these CPUs.

    `flops` are float32 operations per second of a matrix product, two per multiply-add, `reduced` those in other
    precisions; `bandwidth` maps the bytes of a working set to the bytes per second at which it is read.
    `peaks/cuda.json` is of the first GPU, with the bytes that it copies, read and written.
    """

    threads: int
    cpus: tuple[int, ...]
    device: Device = "cpu"
    flops: float
    reduced: dict[Precision, float] = msgspec.field(default_factory=dict)
    bandwidth: dict[int, float]
    machine: dict[str, Any] = msgspec.field(default_factory=dict)


class Operator(Noun, frozen=True, kw_only=True):
    """What an operator of the model took per prediction, by the runtime's own profiler: `ms`, in `calls` calls.

    `name` is the runtime's name of it, a layer's where it keeps those, and `kind` its type.
    """

    name: str
    kind: str
    ms: float
    calls: float


class Explained(Noun, frozen=True, kw_only=True):
    """`explained/<deployment>.<batch>.json`: where the time of a prediction goes inside the model.

    Its median without the profiler, its mean with it (ms), and its operators, the slowest first. `reason` says why
    there are none, null where there are.
    """

    deployment: str
    checkpoint: str
    batch: int
    plain_ms: float
    profiled_ms: float
    operators: tuple[Operator, ...]
    reason: str | None = None

    @property
    def attributed(self) -> float:
        """The share of the profiled time that is an operator's."""
        return sum(operator.ms for operator in self.operators) / self.profiled_ms


class SelfTestOutcome(Noun, frozen=True, kw_only=True):
    """The self-test before a measurement: when it was made, and why it failed, null where it holds."""

    started: str
    failed: str | None = None


class Result(Noun, frozen=True, kw_only=True):
    """`result.json`: one launch of one cell. It has no statistics; they are computed from the samples in its folder.

    `process` has the effective settings of the running processes (threads, affinity, versions); `limits` are those by
    which flags judge the record; `files` as in Checkpoint. `selftest` is null where none was made before it, and in
    older records, to which the run's self-test applies.
    """

    oldest: ClassVar[int] = OLDEST
    schema: int = SCHEMA
    study: str
    cell: Cell
    launch: int
    status: Literal["done", "failed"]
    reason: str | None = None
    artifact: Artifact | None = None
    started: str
    seconds: float = 0.0
    machine: dict[str, Any] = msgspec.field(default_factory=dict)
    process: dict[str, Any] = msgspec.field(default_factory=dict)
    windows: tuple[Window, ...] = ()
    limits: Limits = LIMITS
    selftest: SelfTestOutcome | None = None
    files: dict[str, str] = msgspec.field(default_factory=dict)
