"""What a study's TOML file may say, and the jobs that it asks for: types alone.

`medserve.study_file` reads one, `medserve.problems` says what is wrong with it, `medserve.matrix` spells it out. What
each field means stands in `study_fields.toml`; the template of `medserve study new` and the reference in the manual are
made of both.
"""

import re
from functools import partial
from itertools import product
from typing import Annotated, Any, Literal, TypeVar

from msgspec import Meta, field, to_builtins

from medserve import document, plugins
from medserve.errors import BadInput, check_name
from medserve.models import Recipe
from medserve.spec import (
    Arrivals,
    Cell,
    Count,
    Deployment,
    Device,
    Dispatch,
    Environment,
    LoadProfile,
    Mode,
    NotNegative,
    Noun,
    Payload,
    Positive,
    Precision,
    Server,
    Settings,
    Share,
    Window,
)
from medserve.tables import ARCHITECTURES, DATASETS, FORMATS, check_dataset, find_profile

Value = TypeVar("Value")
Several = Annotated[tuple[Value, ...], Meta(min_length=1)]
"""At least one."""
Own = Annotated[tuple[Value, ...], Meta(extra={"unless": "models"})]
"""At least one, unless all models were made elsewhere."""
MOST_HOURS = 8760.0
"""A year: the longest time limit of a job."""

DatasetName = Annotated[str, Meta(extra={"kind": "data set", "names": lambda: DATASETS, "check": check_dataset})]
ArchitectureName = Annotated[str, Meta(extra={"kind": "architecture", "names": lambda: ARCHITECTURES})]
FrameworkName = Annotated[str, Meta(extra={"kind": "framework", "names": lambda: plugins.names("train.frameworks")})]
FormatName = Annotated[str, Meta(extra={"kind": "format", "names": lambda: ("native", *FORMATS)})]
RuntimeName = Annotated[str, Meta(extra={"kind": "runtime", "names": lambda: plugins.names("serve.runtimes")})]
MachineName = Annotated[str, Meta(extra={"kind": "machine", "check": partial(check_name, "machine")})]
ProfileName = Annotated[str, Meta(extra={"kind": "profile", "check": find_profile})]
Size = Annotated[int, Meta(ge=8, le=1024)]
NotNegativeInteger = Annotated[int, Meta(ge=0)]


def check_shard(words: str) -> None:
    """Raise BadInput for anything but a part of so many, as 2/5."""
    if (found := re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", words, re.ASCII)) is None or int(found[1]) > int(
        found[2]
    ):
        raise BadInput(f"shard {words!r}: expected a part of so many, as 2/5")


MOST_LOAD = 4.0
"""The largest share of its capacity that a deployment is given."""
ADOPTED = "adopted"
"""The framework of a model that was made elsewhere."""


class Measure(Noun, frozen=True, kw_only=True):
    """A line of a study: named profiles, or one by its own terms, at some sizes."""

    profiles: tuple[ProfileName, ...] = ()
    mode: Mode | None = None
    rate: Positive | None = None
    load: Annotated[float, Meta(gt=0, le=MOST_LOAD)] | None = None
    arrivals: Arrivals | None = None
    burst: Count | None = None
    users: Count | None = None
    gap_seconds: NotNegative | None = None
    batch: Count | None = None
    payload: Payload | None = None
    sizes: tuple[Size, ...] = ()
    seconds: Positive | None = None
    warmup_seconds: NotNegative | None = None
    requests: Annotated[int, Meta(ge=0)] | None = None


class Objective(Noun, frozen=True, kw_only=True):
    """What a deployment must hold: one percentile of its latency at a rate, and an accuracy.

    Without a rate, the highest rate at which each deployment holds it is asked for, which its loads tell.
    """

    rate: Positive | None = None
    p50_ms: Positive | None = None
    p90_ms: Positive | None = None
    p99_ms: Positive | None = None
    arrivals: Literal["constant", "poisson"] = "poisson"
    accuracy: Share | None = None


class Subject(Noun, frozen=True, kw_only=True):
    """What a claim is about: a framework in its native format, or in another."""

    framework: str
    format: str = "native"


class Claim(Noun, frozen=True, kw_only=True):
    """A published claim, which the report judges."""

    who: str
    what: str
    where: str
    test: Literal["faster", "accurate", "more-accurate", "sublinear", "trade-off", "configuration", "none"]
    first: Subject = Subject(framework="")
    second: Subject = Subject(framework="")
    at_least: float = 1.0
    size: Literal["smallest", "largest"] = "largest"
    why: str = ""


class Model(Noun, frozen=True, kw_only=True):
    """An artifact that `medserve adopt` made; all but its path is read from it."""

    artifact: str
    name: str = ""
    dataset: str = ""
    format: str = ""
    size: int = 0
    digest: str = ""


Queued = tuple[Dispatch, int, int]
"""How a server predicts, the images that it batches, and how often it loads the model."""


class Study(Noun, frozen=True, kw_only=True):
    """A matrix to run: every data set, size, architecture and framework with every format, runtime and profile.

    Beside it, or instead of it, `models` that were made elsewhere.
    """

    name: str
    title: str
    datasets: Own[DatasetName] = ()
    sizes: Own[Size] = ()
    architectures: Own[ArchitectureName] = ()
    frameworks: Own[FrameworkName] = ()
    formats: Own[FormatName] = ()
    measure: Several[Measure]
    models: tuple[Model, ...] = ()
    servers: tuple[Server, ...] = ()
    environments: tuple[Environment, ...] = ()
    runtimes: tuple[RuntimeName, ...] = ()
    null: bool = True
    device: Device = "cpu"
    settings: Several[Settings] = ("default",)
    explain: bool = False
    threads: Several[Annotated[int, Meta(ge=0)]] = (1,)
    precisions: Several[Precision] = ("float32",)
    batch_sizes: tuple[Count, ...] = (1, 32)
    dispatch: Dispatch | Several[Dispatch] = "inline"
    queue: Count = 128
    batch_images: Several[Count] = (1,)
    instances: Several[Count] = (1,)
    batch_delay_ms: NotNegative = 1.0
    deadline_ms: Positive | None = None
    launches: Count = 3
    copies: NotNegativeInteger = 0
    objective: Objective | None = None
    seeds: Several[Annotated[int, Meta(ge=0, lt=2**32)]] = (0,)
    trained_in: FrameworkName | None = None
    unofficial: bool = False
    window: Window | None = None
    recipe: Recipe = Recipe()
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    serves: tuple[str, ...] = ()
    target_accuracy: Share | None = None
    machines: tuple[MachineName, ...] = ()
    shard: Annotated[str, Meta(extra={"kind": "shard", "check": check_shard})] = "1/1"
    job_hours: Annotated[float, Meta(gt=0, le=MOST_HOURS)] = 24.0
    epochs_at: dict[int, Count] = field(default_factory=dict)
    claims: tuple[Claim, ...] = ()

    @property
    def part(self) -> tuple[int, int]:
        """Which part it is, from 1, and of how many."""
        part, _, parts = self.shard.partition("/")
        return int(part), int(parts)

    @property
    def dispatches(self) -> tuple[Dispatch, ...]:
        """Every way in which the server predicts."""
        return (self.dispatch,) if isinstance(self.dispatch, str) else self.dispatch

    @property
    def parts(self) -> list[tuple[str, str]]:
        """What it can be divided into: each data set with each network, and each model that was made elsewhere."""
        made = product(dict.fromkeys(self.datasets), dict.fromkeys(self.architectures))
        return [*made, *((ADOPTED, model.name) for model in self.models)]

    @property
    def queues(self) -> list[Queued]:
        """Each way to predict, with batching and instances where there is a queue, unless they alone are asked for."""
        dispatches, images = dict.fromkeys(self.dispatches), dict.fromkeys(self.batch_images)
        found = list(product(dispatches, images, dict.fromkeys(self.instances)))
        return [one for one in found if one[0] == "thread" or one[1:] == (1, 1)] or found

    def recipe_of(self, variant: str) -> Recipe:
        """The recipe of a variant. Raises BadInput that names its field."""
        return document.convert(to_builtins(self.recipe) | self.variants.get(variant, {}), Recipe)


class Training(Noun, frozen=True, kw_only=True):
    """A checkpoint to be made. `path` is where one's own images are, empty for a data set of the table."""

    dataset: str
    path: str = ""
    size: int
    architecture: str
    framework: str
    recipe: Recipe
    variant: str | None = None

    @property
    def name(self) -> str:
        """The checkpoint's folder name."""
        if self.framework == ADOPTED:
            return self.architecture
        variant = f"-{self.variant}" if self.variant else ""
        return f"{self.dataset}-{self.size}-{self.architecture}{variant}-{self.framework}-s{self.recipe.seed}"


class Export(Noun, frozen=True, kw_only=True):
    """An artifact to be made from a checkpoint, by the framework that trained it or, transplanted, by another.

    One that was made elsewhere has its place, and its training stands for what its manifest says of the network.
    """

    training: Training
    framework: str
    format: str
    precision: Precision = "float32"
    adopted: Model | None = None

    @property
    def name(self) -> str:
        """The artifact's folder name."""
        if self.adopted:
            return self.adopted.name
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

    @property
    def computes(self) -> bool:
        """Whether it runs a model."""
        return self.deployment.runtime != "null"

    @property
    def peaks(self) -> str:
        """The name of what its processor or GPU computes at most, in the run's folder `peaks`."""
        return str(self.deployment.threads) if self.deployment.device == "cpu" else self.deployment.device

    @property
    def batches_in_process(self) -> tuple[int, ...]:
        """The images per call that are timed in process, without a timing mistake."""
        timed = (one for one in self.profiles if one.mode == "in-process" and one.mistake is None)
        return tuple(dict.fromkeys(one.batch for one in timed))


class Plan(Noun, frozen=True, kw_only=True):
    """A study spelled out. Each tuple is in running order and holds nothing twice.

    `left_out` are sentences: what the study asks for and cannot have, with the reason.
    """

    trainings: tuple[Training, ...]
    exports: tuple[Export, ...]
    deployed: tuple[Deployed, ...]
    left_out: tuple[str, ...] = ()
