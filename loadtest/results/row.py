"""One result: a deployment under one way of measuring, with everything that is published about it."""

from typing import Any, Literal

import msgspec

from loadtest.analysis.intervals import Interval
from medserve.models import Task
from medserve.spec import Noun

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}

OURS = "medserve"
"""This program's own server, among those that others wrote."""
Status = Literal["done", "failed", "missing"]


class Row(Noun, frozen=True, kw_only=True):
    """The results of one cell over all its launches. What could not be measured is null, and `reason` says why.

    The null runtime has no framework, format, precision, scores or certificate. Latencies are in milliseconds from the
    intended start, in a closed loop from sending; `published` gives the names in results.json, which is additive: a
    new field has a default.
    """

    # What was measured.
    study: str
    cell: str
    dataset: str
    size: int  # side of the square images, pixels
    architecture: str
    framework: str | None
    trained_in: str | None  # the framework whose weights these are
    format: str | None
    runtime: str
    server: str = OURS
    copy: int = 0  # of the same deployment under another name
    precision: str | None
    device: str
    settings: str = "default"  # options of the runtime
    threads: int  # of the runtime; 0: all usable cores
    dispatch: str = "inline"  # how the server predicts
    batch_images: int  # images that the server batches at most; 1: no batching
    instances: int = 1  # how often the server has the model
    batch: int  # images per request
    # How it was measured.
    mode: Literal["in-process", "closed-loop", "open-loop"]
    profile: str
    mistake: str | None = None  # the timing mistake that is made on purpose; `trap` in results.json
    load: float | None = None  # what was asked for, as a share of the capacity
    rate_asked: float | None = None  # requests per second, of an open loop; of a load the median over launches
    rate_delivered: float | None = None  # answered requests per second, of an open loop
    # What came of it.
    status: Status
    reason: str | None = None
    n: int = 0  # requests after the warm-up
    failed: int = 0  # requests without a right answer
    wrong: int = 0  # requests with other scores than the golden ones; they are among the failed
    launches: int = 0
    p50: Interval = Interval()
    p90: Interval = Interval()
    p99: Interval = Interval()
    p50_service_ms: float | None = None  # from sending, of an open loop
    p99_service_ms: float | None = None
    p50_uncorrected_ms: float | None = None  # without the requests that a back-to-back client delays
    p99_uncorrected_ms: float | None = None
    lag_p50_us: float | None = None  # sending after the intended start, microseconds
    lag_p99_us: float | None = None
    throughput: float | None = None  # answered images per second
    utilisation: float | None = None  # measured share of the time that the server is busy
    deadline_ms: float | None = None  # of the goodput
    goodput: float | None = None  # requests per second that are answered rightly within the deadline
    overloaded: bool | None = None  # whether an open loop asks for more than the server completes
    # The network and its proof.
    task: Task | None = None  # with several labels per image, accuracies are of labels
    accuracy: float | None = None  # share of the test split
    balanced_accuracy: float | None = None  # mean share of the classes; sensitivity and specificity of labels
    auc: float | None = None
    variant: str | None = None  # the recipe, where a study has several
    seed: int = 0
    parity_max_abs: float | None = None  # largest difference of probabilities from the trainer's
    decisions_changed: int | None = None  # images of the test split, or labels
    source_artifact: str = ""
    limit_ms: float | None = None  # the least time that arithmetic and memory of this machine allow, in float32
    unofficial: bool | None = None
    valid: bool = False  # measured, certified, and with a load generator that was fast enough
    late: bool = False  # not valid for the generator's lateness alone, which only lengthens latencies
    # What the servers used, or the process that was timed: medians over launches, null where the system does not say.
    cpu_ms: float | None = None  # processor time per request
    faults: float | None = None  # minor page faults per request
    switches: float | None = None  # context switches per request
    peak_memory_bytes: float | None = None
    import_seconds: float | None = None
    load_seconds: float | None = None
    ready_seconds: float | None = None
    first_answer_seconds: float | None = None
    # Flags; null where there is too little to tell.
    windows: int = 0  # monitored
    disturbed: int = 0  # windows
    steady: bool | None = None
    bimodal: bool = False
    drifting: bool | None = None
    cached: bool | None = None
    saturation: bool | None = None  # whether this is the saturation point of a ladder of users

    @property
    def deployment(self) -> str:
        """The cell without its profile."""
        return self.cell.removesuffix(f".{self.profile}")

    @property
    def usable(self) -> bool:
        """Whether the median is that of a certified model, measured as it must be: only such rows are compared."""
        return self.status == "done" and self.valid and self.framework is not None and self.p50.value is not None

    @property
    def median(self) -> float:
        """The median of a row that has one, in milliseconds."""
        return self.p50.known

    def percentile(self, name: str) -> Interval:
        """The latency `p50`, `p90` or `p99`."""
        return {"p50": self.p50, "p90": self.p90, "p99": self.p99}[name]

    def with_reason(self, reason: str, **changed: Any) -> "Row":
        """The row with a further reason and other changed fields."""
        reasons = f"{self.reason}; {reason}" if self.reason else reason
        return msgspec.structs.replace(self, reason=reasons, **changed)


def of_labels(task: Task | None) -> str:
    """What stands beside the accuracy of a task: it is not comparable between shares of labels and of images."""
    return "of labels" if task == "multi-label" else ""


def published(row: Row) -> dict[str, Any]:
    """The keys and values of a row in results.json: a percentile has `*_ms`, `*_low` and `*_high`."""
    found: dict[str, Any] = {}
    for name in Row.__struct_fields__:
        value = getattr(row, name)
        if isinstance(value, Interval):
            found |= {f"{name}_ms": value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        else:
            found["trap" if name == "mistake" else name] = value
    return found
