"""What measuring leaves behind: disturbed windows, the load generator's self-test, and the result of a launch."""

from typing import Any, Literal

import msgspec

from medserve.spec import SCHEMA, Artifact, Cell, Noun


class Window(Noun, frozen=True, kw_only=True):
    """What the system did in a window of a measurement; what it does not report is null. `reason`: why it is disturbed.

    `stolen` and `others` are CPU seconds of the measured cores that the hypervisor took, and that other processes than
    server and client took; `throttled` counts throttling events of heat or quota, `switches` involuntary context
    switches of the server and the client.
    """

    start_ns: int
    end_ns: int
    stolen: float | None
    others: float | None
    throttled: int | None
    switches: int | None
    load: float | None
    reason: str | None


class Check(Noun, frozen=True, kw_only=True):
    """A check of a self-test: measured value, truth, and largest difference; `ok` is null when it is not judged."""

    name: str
    measured: float | None
    truth: float | None
    limit: float | None
    unit: str
    ok: bool | None


class SelfTest(Noun, frozen=True, kw_only=True):
    """`selftest/selftest.json`: the load generator tested on known answers. `files` as in Checkpoint.

    `roofline` maps a side in pixels to the requests per second that the generator and the null server reach together.
    """

    schema: int = SCHEMA
    started: str
    seconds: float
    roofline: dict[int, float]
    checks: tuple[Check, ...]
    machine: dict[str, Any] = msgspec.field(default_factory=dict)
    files: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that do not hold."""
        return tuple(check for check in self.checks if check.ok is False)


class Result(Noun, frozen=True, kw_only=True):
    """`result.json`: one launch of one cell. The raw samples beside it are the truth; no statistic is stored.

    `process` is what was read back from the running processes (threads, affinity, versions); `files` as in Checkpoint.
    """

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
    files: dict[str, str] = msgspec.field(default_factory=dict)
