"""What a study's TOML file may say, and the jobs that it asks for: types alone.

`medserve.study_file` reads one, `medserve.matrix` spells it out. The description of a field is its documentation: the
template of `medserve study new` and the reference in the manual are made from these types.
"""

from typing import Annotated, Any, Literal, TypeVar

from msgspec import Meta, field

from medserve import plugins
from medserve.spec import (
    Arrivals,
    Cell,
    Deployment,
    Device,
    Dispatch,
    LoadProfile,
    Mode,
    Noun,
    Payload,
    Precision,
    Recipe,
)
from medserve.tables import ARCHITECTURES, DATASETS, FORMATS, find_profile

Value = TypeVar("Value")
Several = Annotated[tuple[Value, ...], Meta(min_length=1)]
"""At least one."""

MOST_HOURS = 8760.0
"""A year: the longest time limit of a job."""

DatasetName = Annotated[str, Meta(extra={"kind": "data set", "names": lambda: DATASETS})]
ArchitectureName = Annotated[str, Meta(extra={"kind": "architecture", "names": lambda: ARCHITECTURES})]
FrameworkName = Annotated[str, Meta(extra={"kind": "framework", "names": lambda: plugins.names("train.frameworks")})]
FormatName = Annotated[str, Meta(extra={"kind": "format", "names": lambda: ("native", *FORMATS)})]
RuntimeName = Annotated[str, Meta(extra={"kind": "runtime", "names": lambda: plugins.names("serve.runtimes")})]
ProfileName = Annotated[str, Meta(extra={"kind": "profile", "check": find_profile})]
Size = Annotated[int, Meta(ge=8, le=1024)]
Count = Annotated[int, Meta(ge=1)]


class Measure(Noun, frozen=True, kw_only=True):
    """A line of a study: named profiles, or one by its own terms, at some sizes."""

    profiles: Annotated[
        tuple[ProfileName, ...],
        Meta(
            description="Named ways of measuring, see `medserve list`; also in-process-BATCH, closed-USERS, open-RATE, "
            "poisson-RATE, bursts-RATE and idle-MILLISECONDSms of any number. Or give a mode."
        ),
    ] = ()
    mode: Annotated[Mode | None, Meta(description="In place of profiles: how requests are made.")] = None
    rate: Annotated[Annotated[float, Meta(gt=0)] | None, Meta(description="Requests per second of an open loop.")] = (
        None
    )
    arrivals: Annotated[Arrivals | None, Meta(description="When the requests of an open loop are due.")] = None
    burst: Annotated[Count | None, Meta(description="Requests that arrive together, for arrivals in bursts.")] = None
    users: Annotated[Count | None, Meta(description="Users of a closed loop, each with one request at a time.")] = None
    gap_seconds: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Meta(description="Seconds that a user of a closed loop rests between an answer and the next request."),
    ] = None
    batch: Annotated[Count | None, Meta(description="Images per request.")] = None
    payload: Annotated[Payload | None, Meta(description="Body of a request: binary tensors, or numbers in JSON.")] = (
        None
    )
    sizes: Annotated[tuple[Size, ...], Meta(description="Sizes to measure at, in pixels; all when empty.")] = ()
    seconds: Annotated[
        Annotated[float, Meta(gt=0)] | None, Meta(description="Seconds of measuring; the profile's when absent.")
    ] = None
    warmup_seconds: Annotated[
        Annotated[float, Meta(ge=0)] | None, Meta(description="Seconds before that; the profile's when absent.")
    ] = None
    requests: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        Meta(
            description="Measuring goes on, up to a minute, until it holds so many; a p99 needs 368. 0: for `seconds` "
            "alone. 460 when absent."
        ),
    ] = None


class Objective(Noun, frozen=True, kw_only=True):
    """What a deployment must hold: one percentile of its latency at a rate, and an accuracy."""

    rate: Annotated[float, Meta(gt=0, description="Requests per second; a profile of this rate is measured.")]
    p50_ms: Annotated[
        Annotated[float, Meta(gt=0)] | None, Meta(description="Highest median latency, in milliseconds.")
    ] = None
    p90_ms: Annotated[Annotated[float, Meta(gt=0)] | None, Meta(description="Or the highest 90th percentile.")] = None
    p99_ms: Annotated[Annotated[float, Meta(gt=0)] | None, Meta(description="Or the highest 99th percentile.")] = None
    arrivals: Annotated[Literal["constant", "poisson"], Meta(description="When the requests are due.")] = "poisson"
    accuracy: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | None, Meta(description="Lowest test accuracy, as a share.")
    ] = None


class Subject(Noun, frozen=True, kw_only=True):
    """What a claim is about: a framework in its native format, or in another."""

    framework: Annotated[str, Meta(description="The framework.")]
    format: Annotated[str, Meta(description="Its format.")] = "native"


class Claim(Noun, frozen=True, kw_only=True):
    """A published claim, which the report judges."""

    who: Annotated[str, Meta(description="Who published it.")]
    what: Annotated[str, Meta(description="What it says.")]
    where: Annotated[str, Meta(description="The place in the publication.")]
    test: Annotated[
        Literal["faster", "accurate", "more-accurate", "sublinear", "trade-off", "configuration", "none"],
        Meta(
            description="What is held against `at_least`. faster: the second's median latency over the first's. "
            "accurate: the first's test accuracy. more-accurate: the first's less the second's. sublinear: latency "
            "grows more slowly than the pixels. trade-off: some framework is slower than another and more accurate. "
            "configuration: the accuracy of the best of the first's networks, recipes and seeds. none: it cannot be "
            "judged, see `why`."
        ),
    ]
    first: Annotated[Subject, Meta(description="The first subject: a framework, and a format.")] = Subject(framework="")
    second: Annotated[Subject, Meta(description="The second one.")] = Subject(framework="")
    at_least: Annotated[float, Meta(description="The limit of the test.")] = 1.0
    size: Annotated[Literal["smallest", "largest"], Meta(description="At which of the study's sizes it is judged.")] = (
        "largest"
    )
    why: Annotated[str, Meta(description="Why it cannot be judged.")] = ""


class Study(Noun, frozen=True, kw_only=True):
    """A matrix to run: every data set, size, architecture and framework with every format, runtime and profile."""

    name: Annotated[str, Meta(description="Name of the study, and of its folder in runs/.")]
    title: Annotated[str, Meta(description="Title of its report.")]
    datasets: Annotated[Several[DatasetName], Meta(description="Data sets.")]
    sizes: Annotated[Several[Size], Meta(description="Sides of the images, in pixels.")]
    architectures: Annotated[Several[ArchitectureName], Meta(description="Networks.")]
    frameworks: Annotated[Several[FrameworkName], Meta(description="Frameworks that train and export.")]
    formats: Annotated[
        Several[FormatName],
        Meta(description="Formats of the exports. native: the first one that the framework's exporter writes."),
    ]
    measure: Annotated[Several[Measure], Meta(description="What is measured of each deployment.")]
    runtimes: Annotated[
        tuple[RuntimeName, ...],
        Meta(description="Runtimes that serve each format which they read; when empty, the format's own."),
    ] = ()
    null: Annotated[
        bool, Meta(description="Measure a runtime without a model too: what wrapper and generator take.")
    ] = True
    device: Annotated[Device, Meta(description="Where predictions run.")] = "cpu"
    threads: Annotated[
        Several[Annotated[int, Meta(ge=0)]],
        Meta(description="Threads per runtime. 0: all usable cores, in process only."),
    ] = (1,)
    precisions: Annotated[
        Several[Precision], Meta(description="Of the exports; each format is written in those that it can have.")
    ] = ("float32",)
    batch_sizes: Annotated[
        tuple[Count, ...],
        Meta(description="Batches that runtimes prepare; others are padded. When absent, 1, 32 and those measured."),
    ] = (1, 32)
    dispatch: Annotated[
        Dispatch | Several[Dispatch],
        Meta(description="How the server predicts: inline in its event loop, or in a thread behind a queue."),
    ] = "inline"
    queue: Annotated[Count, Meta(description="Requests that may wait for the thread.")] = 128
    batch_images: Annotated[
        Several[Count], Meta(description="Images that the server batches at most; one deployment each.")
    ] = (1,)
    batch_delay_ms: Annotated[float, Meta(ge=0, description="How long it waits for more images.")] = 1.0
    deadline_ms: Annotated[
        Annotated[float, Meta(gt=0)] | None, Meta(description="Age at which a waiting request is refused.")
    ] = None
    launches: Annotated[int, Meta(ge=1, description="Fresh processes per deployment; intervals are over launches.")] = 3
    objective: Annotated[
        Objective | None, Meta(description="What a deployment must hold; the report says which do.")
    ] = None
    seeds: Annotated[
        Several[Annotated[int, Meta(ge=0, lt=2**32)]],
        Meta(description="Seeds to train with. The first one's networks are measured: the others are as fast."),
    ] = (0,)
    trained_in: Annotated[
        FrameworkName | None, Meta(description="One framework trains for all; the others take its weights.")
    ] = None
    unofficial: Annotated[
        bool, Meta(description="Accept archives in MedMNIST's layout that are not the official ones.")
    ] = False
    recipe: Annotated[Recipe, Meta(description="How networks are trained.")] = Recipe()
    variants: Annotated[
        dict[str, dict[str, Any]], Meta(description="Names of further recipes, with what each changes.")
    ] = field(default_factory=dict)
    serves: Annotated[
        tuple[str, ...], Meta(description="Variants that are exported and measured; all when empty.")
    ] = ()
    target_accuracy: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | None,
        Meta(description="The report says how long training took to this validation accuracy."),
    ] = None
    job_hours: Annotated[
        float, Meta(gt=0, le=MOST_HOURS, description="A training, an export or a launch that takes longer is ended.")
    ] = 24.0
    epochs_at: Annotated[
        dict[int, Count], Meta(description="Epochs at a size, where they are others than the recipe's.")
    ] = field(default_factory=dict)
    claims: Annotated[tuple[Claim, ...], Meta(description="Published claims that the report judges.")] = ()

    @property
    def dispatches(self) -> tuple[Dispatch, ...]:
        """Every way in which the server predicts."""
        return (self.dispatch,) if isinstance(self.dispatch, str) else self.dispatch


class Training(Noun, frozen=True, kw_only=True):
    """A checkpoint to be made."""

    dataset: str
    size: int
    architecture: str
    framework: str
    recipe: Recipe
    variant: str | None = None

    @property
    def name(self) -> str:
        """The checkpoint's folder name."""
        variant = f"-{self.variant}" if self.variant else ""
        return f"{self.dataset}-{self.size}-{self.architecture}{variant}-{self.framework}-s{self.recipe.seed}"


class Export(Noun, frozen=True, kw_only=True):
    """An artifact to be made from a checkpoint, by the framework that trained it or, transplanted, by another."""

    training: Training
    framework: str
    format: str
    precision: Precision = "float32"

    @property
    def name(self) -> str:
        """The artifact's folder name."""
        transplanted = "" if self.framework == self.training.framework else f"-in-{self.framework}"
        reduced = "" if self.precision == "float32" else f"-{self.precision}"
        return f"{self.training.name}{transplanted}.{self.format}{reduced}"


class Deployed(Noun, frozen=True, kw_only=True):
    """A deployment of an export, and the profiles it is measured under, in order."""

    export: Export
    deployment: Deployment
    profiles: tuple[LoadProfile, ...]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """One cell a profile."""
        return tuple(Cell(deployment=self.deployment, profile=profile) for profile in self.profiles)


class Plan(Noun, frozen=True, kw_only=True):
    """A study spelled out. Each tuple is in running order and holds nothing twice.

    `left_out` are sentences: what the study asks for and cannot have, with the reason.
    """

    trainings: tuple[Training, ...]
    exports: tuple[Export, ...]
    deployed: tuple[Deployed, ...]
    left_out: tuple[str, ...] = ()
