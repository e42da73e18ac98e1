"""A study: one TOML file in, the jobs and cells of its matrix out. Pure functions; nothing is started here."""

import re
import tomllib
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from medserve import plugins
from medserve.errors import BadInput, check_name, unknown
from medserve.spec import Cell, DatasetSpec, Deployment, Device, Dispatch, LoadProfile, Noun, Precision, Recipe
from medserve.tables import ARCHITECTURES, DATASETS, FORMATS, PROFILES, pick

Value = TypeVar("Value")
Several = Annotated[tuple[Value, ...], msgspec.Meta(min_length=1)]
"""At least one."""

STUDIES = Path(__file__).parent / "studies"
MOST_HOURS = 8760.0
"""A year: the longest time limit of a job."""


class Measure(Noun, frozen=True, kw_only=True):
    """A line of a study: which profiles, at which sizes (all when empty), with durations other than the profile's.

    `requests` as in `LoadProfile`; 0 measures for `seconds` alone.
    """

    profiles: tuple[str, ...]
    sizes: tuple[int, ...] = ()
    seconds: float | None = None
    warmup_seconds: float | None = None
    requests: int | None = None


class Subject(Noun, frozen=True, kw_only=True):
    """What a claim is about: a framework in its native format, or in another."""

    framework: str
    format: str = "native"


class Claim(Noun, frozen=True, kw_only=True):
    """A published claim: `who` said `what`, and `where`. `test` says how a run judges it, against `at_least`.

    `faster`: the second's median latency over the first's. `accurate`: the first's test accuracy. `more-accurate`: the
    first's less the second's. `sublinear`: latency grows more slowly than the pixels. `trade-off`: some framework is
    slower than another and more accurate. `configuration`: the accuracy of the best of the first's networks, recipes
    and seeds. `none`: not to be judged, `why`.
    """

    who: str
    what: str
    where: str
    test: Literal["faster", "accurate", "more-accurate", "sublinear", "trade-off", "configuration", "none"]
    first: Subject = Subject(framework="")
    second: Subject = Subject(framework="")
    at_least: float = 1.0
    size: Literal["smallest", "largest"] = "largest"
    why: str = ""


class Study(Noun, frozen=True, kw_only=True):
    """A matrix to run. `formats` may say `native`: the first format that the framework's exporter writes.

    Of `threads`, 0 means all usable cores, and is measured in process only: over HTTP it would take the load
    generator's core. Timing mistakes are measured with the first of them. In `precisions` other than float32 only those
    formats are exported that can be had in them. With `trained_in` one framework trains for all, and its weights are
    transplanted into the others: one function in all deployments. `variants` are names with what each changes in the
    recipe; without any, the recipe itself is the only one. `serves` names the variants that are exported and measured,
    all when it is empty. Of several seeds the first one is: the others are as fast, and tell how far training spreads.
    `dispatch` to `deadline_ms` are those of every deployment, one for each of `batch_images`.
    The report says how long training took to a validation accuracy of `target_accuracy`. A job (a training, an export,
    a launch) that runs for more than `job_hours` is ended and counts as failed; the next run resumes a training.
    """

    name: str
    title: str
    datasets: Several[str]
    sizes: Several[int]
    architectures: Several[str]
    frameworks: Several[str]
    formats: Several[str]
    measure: Several[Measure]
    runtimes: tuple[str, ...] = ()
    null: bool = True
    device: Device = "cpu"
    threads: Several[Annotated[int, msgspec.Meta(ge=0)]] = (1,)
    precisions: Several[Precision] = ("float32",)
    batch_sizes: tuple[int, ...] = (1, 32)
    dispatch: Dispatch = "inline"
    queue: int = 128
    batch_images: Several[int] = (1,)
    batch_delay_ms: float = 1.0
    deadline_ms: float | None = None
    launches: Annotated[int, msgspec.Meta(ge=1)] = 3
    seeds: Several[int] = (0,)
    trained_in: str | None = None
    unofficial: bool = False
    recipe: Recipe = Recipe()
    variants: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)
    serves: tuple[str, ...] = ()
    target_accuracy: float | None = None
    job_hours: Annotated[float, msgspec.Meta(gt=0, le=MOST_HOURS)] = 24.0
    epochs_at: dict[int, int] = msgspec.field(default_factory=dict)
    claims: tuple[Claim, ...] = ()


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
    """A study spelled out. Each tuple is in running order and holds nothing twice."""

    trainings: tuple[Training, ...]
    exports: tuple[Export, ...]
    deployed: tuple[Deployed, ...]


def names() -> list[str]:
    """The studies that come with the program."""
    return sorted(path.stem for path in STUDIES.glob("*.toml"))


def read(name: str) -> Study:
    """A study by its name, or from a TOML file. Raises BadInput that names the file and what is wrong in it."""
    path = Path(name) if name.endswith(".toml") else STUDIES / f"{name}.toml"
    if not path.is_file():
        raise BadInput(f"{name}: no such study file") if name.endswith(".toml") else unknown("study", name, names())
    try:
        study = msgspec.convert(tomllib.loads(path.read_text()), Study, str_keys=True)
        plan(study)
    except msgspec.ValidationError as error:
        raise BadInput(f"{path}: {_with_fields(error, Study)}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, BadInput) as error:
        raise BadInput(f"{path}: {error}") from None
    return study


def _with_fields(error: msgspec.ValidationError, whole: type[Noun]) -> str:
    """The error of an unknown field, with those that there are; any other as it is."""
    found = re.search(r"unknown field `(\w+)`(?: - at `\$\.(\w+))?", str(error))
    if found is None:
        return str(error)
    parts: dict[str, type[Noun]] = {"measure": Measure, "recipe": Recipe, "claims": Claim}
    kind = parts.get(found[2], whole)
    place = f"field of '{found[2]}'" if found[2] else "field"
    return str(unknown(place, found[1], kind.__struct_fields__))


def plan(study: Study) -> Plan:
    """The matrix of a study. Raises BadInput for a name that is in no table and a combination that cannot be."""
    _check(study)
    trainings, exports, deployed = [], [], []
    for dataset, size, architecture in product(study.datasets, study.sizes, study.architectures):
        made: list[Export] = []
        for framework in study.frameworks:
            for training in _trainings(study, dataset, size, architecture, framework):
                if training not in trainings:
                    trainings.append(training)
                is_first = training.recipe.seed == study.seeds[0]
                if is_first and (not study.serves or training.variant in study.serves):
                    made += _exports(study, training, framework)
        if not made:
            formats, precisions = (", ".join(names) for names in (study.formats, study.precisions))
            raise BadInput(f"nothing to export: no framework has any of the formats {formats} in {precisions}")
        exports += made
        profiles = _profiles(study, size)
        deployed += [
            _deployed(study, export, runtime, threads, batch_images, profiles)
            for export in made
            for runtime in readers(study, export.format)
            for threads in dict.fromkeys((*study.threads, 0))
            for batch_images in study.batch_images
        ]
        if study.null:
            deployed.append(_deployed(study, made[0], "null", 1, study.batch_images[0], profiles))
    measured = tuple(one for one in deployed if one.profiles)
    for name in (*(training.name for training in trainings), *(cell.name for one in measured for cell in one.cells)):
        check_name("cell", name)
    return Plan(trainings=tuple(trainings), exports=tuple(exports), deployed=measured)


def _trainings(study: Study, dataset: str, size: int, architecture: str, framework: str) -> Iterator[Training]:
    """One a variant and seed."""
    for variant, changes in (study.variants or {"": {}}).items():
        try:
            recipe = msgspec.convert(msgspec.to_builtins(study.recipe) | changes, Recipe)
        except msgspec.ValidationError as error:
            raise BadInput(f"'variants.{variant}': {_with_fields(error, Recipe)}") from None
        epochs = study.epochs_at.get(size, recipe.epochs)
        for seed in study.seeds:
            yield Training(
                dataset=dataset,
                size=size,
                architecture=architecture,
                framework=study.trained_in or framework,
                recipe=msgspec.structs.replace(recipe, seed=seed, epochs=epochs),
                variant=variant or None,
            )


def check_size(dataset: DatasetSpec, size: int) -> None:
    """Raise BadInput when the data set does not come at `size` pixels."""
    if dataset.sizes and size not in dataset.sizes:
        raise BadInput(f"{dataset.name} does not come at {size} px; there is: {', '.join(map(str, dataset.sizes))}")
    if not 8 <= size <= 1024:
        raise BadInput(f"size {size} px; expected 8 to 1024")


def _check(study: Study) -> None:
    check_name("study", study.name)
    for variant in study.variants:
        check_name("variant", variant)
    for dataset, size in product(study.datasets, study.sizes):
        check_size(pick(DATASETS, "dataset", dataset), size)
    for architecture in study.architectures:
        pick(ARCHITECTURES, "architecture", architecture)
    for framework in (*study.frameworks, *filter(None, (study.trained_in,))):
        if framework not in (known := plugins.names("train.frameworks")):
            raise unknown("framework", framework, known)
    for runtime in study.runtimes:
        plugins.literals("serve.runtimes", runtime)
    for variant in study.serves:
        if variant not in study.variants:
            raise unknown("variant in 'serves'", variant, study.variants)
    for name in study.formats:
        if name != "native":
            pick(FORMATS, "format", name)
    for measure in study.measure:
        for profile in measure.profiles:
            if (batch := pick(PROFILES, "profile", profile).batch) > max(study.batch_sizes):
                raise BadInput(f"profile {profile} sends batches of {batch}; add {batch} to 'batch_sizes'")


def _exports(study: Study, training: Training, framework: str) -> Iterator[Export]:
    """The study's formats and precisions that this framework has; what it cannot write becomes a row with a reason."""
    literals = plugins.literals("export.frameworks", framework)
    for form in dict.fromkeys(literals["WRITES"][0] if name == "native" else name for name in study.formats):
        for precision in study.precisions:
            if precision == "float32" or form in literals.get(precision.upper(), ()):
                yield Export(training=training, framework=framework, format=form, precision=precision)


def readers(study: Study, form: str) -> list[str]:
    """The runtimes of the study that read a format: its own where the study names none."""
    if not study.runtimes:
        return [FORMATS[form].runtime]
    return [name for name in study.runtimes if form in plugins.literals("serve.runtimes", name)["READS"]]


def _deployed(
    study: Study, export: Export, runtime: str, threads: int, batch_images: int, profiles: tuple[LoadProfile, ...]
) -> Deployed:
    deployment = Deployment(
        artifact=export.name,
        runtime=runtime,
        device=study.device,
        threads=threads,
        batch_sizes=study.batch_sizes,
        dispatch=study.dispatch,
        queue=study.queue,
        batch_images=batch_images,
        batch_delay_ms=study.batch_delay_ms,
        deadline_ms=study.deadline_ms,
    )
    deployment.check()
    offered = plugins.literals("serve.runtimes", runtime).get("MISTAKES", ())
    kept = tuple(
        profile
        for profile in profiles
        if _fits(study, profile, runtime, threads, offered)
        # In process nothing waits, and so nothing is put together.
        and (profile.mode != "in-process" or batch_images == study.batch_images[0])
    )
    return Deployed(export=export, deployment=deployment, profiles=kept)


def _fits(study: Study, profile: LoadProfile, runtime: str, threads: int, offered: tuple[str, ...]) -> bool:
    """Whether a deployment is measured under a profile: a timing mistake where it applies, all threads in process."""
    if runtime == "null":
        return profile.mistake is None
    if profile.mistake is None:
        return threads in study.threads and bool(threads or profile.mode == "in-process")
    if profile.mistake == "default-threads":
        return threads == 0
    return threads == study.threads[0] and (profile.mistake != "predict" or profile.mistake in offered)


def _profiles(study: Study, size: int) -> tuple[LoadProfile, ...]:
    found: dict[str, LoadProfile] = {}
    for measure in study.measure:
        if measure.sizes and size not in measure.sizes:
            continue
        for name in measure.profiles:
            fields = ("seconds", "warmup_seconds", "requests")
            given = {field: value for field in fields if (value := getattr(measure, field)) is not None}
            found[name] = msgspec.structs.replace(PROFILES[name], **given)
    # What is measured soundly comes first.
    return tuple(sorted(found.values(), key=lambda profile: profile.mistake is not None))
