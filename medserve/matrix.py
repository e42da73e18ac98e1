"""Spells a study out: the jobs and cells of its matrix. Pure functions; nothing is started here."""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import product

import msgspec

from medserve import document, measures, plugins, tables
from medserve.errors import BadInput, check_name, unknown
from medserve.models import DatasetSpec, Recipe
from medserve.spec import PLACES, Deployment, Dispatch, Environment, LoadProfile, Server, Settings, check_window
from medserve.study import ADOPTED, Deployed, Export, Model, Plan, Study, Training
from medserve.tables import ARCHITECTURES, DATASETS, FORMATS, pick, title

Queued = tuple[Dispatch, int, int]
"""How a server predicts, the images that it batches, and how often it loads the model."""
BODIES, OIP = "loadtest.generator.bodies", "oip"
"""The plug-ins of requests and answers; that of the Open Inference Protocol has tensors in binary and in JSON."""


def plan(study: Study) -> Plan:
    """The matrix of a study. Raises BadInput with every reason, a line each, for a combination that cannot be."""
    if found := list(dict.fromkeys(_problems(study))):
        raise BadInput(*found)
    trainings, exports, deployed = [], [], []
    left_out: list[str] = []
    datasets, sizes, networks = (
        dict.fromkeys(study.datasets),
        dict.fromkeys(study.sizes),
        dict.fromkeys(study.architectures),
    )
    groups: list[tuple[int, list[Export]]] = []
    part, parts = study.part
    mine = {*parts_of(study)[part - 1 :: parts]}
    for dataset, size, architecture in product(datasets, sizes, networks):
        if (dataset, architecture) not in mine:
            continue
        made: list[Export] = []
        for framework in dict.fromkeys(study.frameworks):
            for training in _trainings(study, dataset, size, architecture, framework):
                if training not in trainings:
                    trainings.append(training)
                is_first = training.recipe.seed == study.seeds[0]
                if is_first and (not study.serves or training.variant in study.serves):
                    made += _exports(study, training, framework, left_out)
        if not made:
            formats, precisions = (", ".join(names) for names in (study.formats, study.precisions))
            raise BadInput(f"nothing to export: no framework has any of the formats {formats} in {precisions}")
        groups.append((size, made))
    models = [model for model in study.models if (ADOPTED, model.name) in mine]
    for size in dict.fromkeys(model.size for model in models):
        groups.append((size, [_adopted(model) for model in models if model.size == size]))
    for size, made in groups:
        exports += made
        profiles = measures.profiles(study, size)
        for export in made:
            runtimes = readers(study, export.format)
            if not runtimes:
                left_out.append(f"{title(export.format)}: none of the runtimes {', '.join(study.runtimes)} reads it")
            alone = [
                _deployed(study, export, runtime, settings, threads, queued, profiles)
                for runtime in runtimes
                for settings in _settings(study, runtime, left_out)
                for threads in dict.fromkeys((*study.threads, 0))
                for queued in _queues(study)
            ]
            alone += [
                _served(study, export, server, threads, profiles)
                for server in study.servers
                for threads in dict.fromkeys(study.threads)
                if (server.format, export.precision) == (export.format, "float32") and threads
            ]
            deployed += [_copy(one, number) for one in alone for number in range(study.copies + 1)]
        if study.null:
            deployed.append(_deployed(study, made[0], "null", "default", 1, _queues(study)[0], profiles))
    measured = tuple(one for one in deployed if one.profiles)
    for name in (*(training.name for training in trainings), *(cell.name for one in measured for cell in one.cells)):
        check_name("cell", name)
    for server in study.servers:
        if not any(one.deployment.server == server for one in measured):
            form = title(server.format)
            left_out.append(f"{server.name}: it serves {form}, and the study has no {form} with a load over HTTP")
    if parts > 1:
        left_out.append(f"this is part {part} of {parts} of the study: the networks and data sets of the others")
    if len(study.seeds) > 1:
        left_out.append(f"seeds {', '.join(map(str, study.seeds[1:]))}: trained, not measured, for they are as fast")
    return Plan(
        trainings=tuple(trainings),
        exports=tuple(exports),
        deployed=measured,
        left_out=tuple(dict.fromkeys(left_out)),
    )


def parts_of(study: Study) -> list[tuple[str, str]]:
    """What a study can be divided into: each data set with each network, and each model that was made elsewhere."""
    made = product(dict.fromkeys(study.datasets), dict.fromkeys(study.architectures))
    return [*made, *((ADOPTED, model.name) for model in study.models)]


def environments_of(study: Study, found: Plan) -> list[Environment]:
    """The environments that a study needs: of its frameworks and runtimes, and of the servers that it measures."""
    behind = [made.deployment.environment for made in found.deployed]
    return list(
        {one.name: one for one in (*study.environments, *behind) if one and (one.runs or one in behind)}.values()
    )


def _has_loads(study: Study) -> bool:
    """Whether anything is measured at a share of its capacity."""
    with suppress(BadInput):  # `_problems` says what is wrong with a line
        return any(one.load is not None for measure in study.measure for one in measures.profiles_of(measure))
    return False


def _adopted(model: Model) -> Export:
    """A model that was made elsewhere, in the words of those that are made here."""
    training = Training(
        dataset=model.dataset, size=model.size, architecture=model.name, framework=ADOPTED, recipe=Recipe()
    )
    return Export(training=training, framework=ADOPTED, format=model.format, adopted=model)


def readers(study: Study, form: str) -> list[str]:
    """The runtimes of the study that read a format: its own where the study names none."""
    if not study.runtimes:
        return [FORMATS[form].runtime]
    return [name for name in dict.fromkeys(study.runtimes) if form in plugins.literals("serve.runtimes", name)["READS"]]


def _settings(study: Study, runtime: str, left_out: list[str]) -> Iterator[Settings]:
    """The study's settings that a runtime has; the others are added to `left_out`."""
    for settings in dict.fromkeys(study.settings):
        if settings == "default" or plugins.literal("serve.runtimes", runtime, "TUNING"):
            yield settings
        else:
            left_out.append(f"{title(runtime)} {settings}: it has no options to choose from")


def _queues(study: Study) -> list[Queued]:
    """Each way to predict, with batching and instances where there is a queue, unless they alone are asked for."""
    dispatches, images = dict.fromkeys(study.dispatches), dict.fromkeys(study.batch_images)
    found = list(product(dispatches, images, dict.fromkeys(study.instances)))
    return [one for one in found if one[0] == "thread" or one[1:] == (1, 1)] or found


def check_size(dataset: DatasetSpec, size: int) -> None:
    """Raise BadInput when the data set does not come at `size` pixels."""
    if dataset.sizes and size not in dataset.sizes:
        raise BadInput(f"{dataset.name} does not come at {size} px; there is: {', '.join(map(str, dataset.sizes))}")
    if not 8 <= size <= 1024:
        raise BadInput(f"size {size} px; expected 8 to 1024")


def _problems(study: Study) -> Iterator[str]:
    """What is wrong with a study beyond the types of its fields."""

    def refused(what: str, check: Callable[..., object], *words: object) -> Iterator[str]:
        try:
            check(*words)
        except BadInput as error:
            yield from (what + line for line in error.lines)

    # `document.convert` checks the names of a study file; a study from a run's folder comes without that.
    for name in (name for name in study.formats if name != "native"):
        yield from refused("", pick, FORMATS, "format", name)
    for name in study.architectures:
        yield from refused("", pick, ARCHITECTURES, "architecture", name)
    for name in (*study.frameworks, *filter(None, (study.trained_in,))):
        yield from refused("", plugins.literals, "train.frameworks", name)
    for name in study.runtimes:
        yield from refused("", plugins.literals, "serve.runtimes", name)
    yield from refused("", check_name, "study", study.name)
    named = [model.name for model in study.models]
    for name in dict.fromkeys(name for name in named if named.count(name) > 1):
        yield f"[[models]]: several have the name {name}; adopt them into folders of different names"
    yield from _server_problems(study, refused)
    for variant in study.variants:
        yield from refused("", check_name, "variant", variant)
        yield from refused(f"'variants.{variant}': ", _recipe, study, variant)
    for dataset in study.datasets:
        yield from refused("", tables.check_dataset, dataset)
    own = [dataset for dataset in dict.fromkeys(study.datasets) if tables.is_path(dataset)]
    called: list[str] = []
    for dataset in own:
        with suppress(BadInput):
            called.append(tables.dataset_name(dataset))
    for name in dict.fromkeys(name for name in called if called.count(name) > 1):
        yield f"'datasets': several are called {name}; rename the folders or files"
    yield from refused("", check_window, study.window)
    if (most := max(1, len(parts_of(study)))) < study.part[1]:
        yield f"'shard' is {study.shard}; it has at most {most} parts: its data sets with their networks, its models"
    if study.window is not None and not own:
        yield "'window' is for images of one's own; 'datasets' names no path"
    for dataset, size in product((name for name in study.datasets if name in DATASETS), study.sizes):
        yield from refused("", check_size, DATASETS[dataset], size)
    for variant in study.serves:
        if variant not in study.variants:
            yield str(unknown("variant in 'serves'", variant, study.variants))
    for place, measure in enumerate(study.measure, 1):
        yield from refused(f"[[measure]] {place}: ", measures.check, study, measure)
    if (objective := study.objective) is not None:
        given = [limit for limit in (objective.p50_ms, objective.p90_ms, objective.p99_ms) if limit is not None]
        if len(given) != 1:
            yield "[objective]: give one of 'p50_ms', 'p90_ms' and 'p99_ms'"
        if objective.rate is None and not _has_loads(study):
            yield "[objective]: give a 'rate', or measure loads, which tell the highest: profiles = [\"load-50\", ...]"
    for dispatch, batch_images, instances in _queues(study):
        deployment = Deployment(
            artifact="any", runtime="null", batch_sizes=study.batch_sizes, dispatch=dispatch,
            batch_images=batch_images, instances=instances, batch_delay_ms=study.batch_delay_ms,
            deadline_ms=study.deadline_ms if dispatch == "thread" else None,
        )  # fmt: skip
        yield from refused("", deployment.check)
    if study.deadline_ms is not None and "thread" not in study.dispatches:
        yield "'deadline_ms' needs a queue; add thread to 'dispatch'"


def _server_problems(study: Study, refused: Callable[..., Iterator[str]]) -> Iterator[str]:
    """What is wrong with the servers of a study, and with the environments of their programs."""
    for table, entries in (("servers", study.servers), ("environments", study.environments)):
        named = [one.name for one in entries]
        for name in dict.fromkeys(name for name in named if named.count(name) > 1):
            yield f"[[{table}]]: several have the name {name}"
    known = dict.fromkeys(one.name for one in study.environments)
    plugged = dict.fromkeys((*plugins.names("train.frameworks"), *plugins.names("serve.runtimes")))
    runs = [(one.name, name) for one in study.environments for name in one.runs]
    for environment, name in runs:
        yield from refused(f"[[environments]] {environment}: ", pick, plugged, "framework or runtime", name)
    for name in dict.fromkeys(name for _, name in runs if [one for _, one in runs].count(name) > 1):
        yield f"[[environments]]: several run {name}"
    for server in study.servers:
        where = f"[[servers]] {server.name}: "
        if bool(server.url) == bool(server.command):
            yield f"{where}give either a 'url' or a 'command'"
        if server.environment:
            yield from refused(where, pick, known, "environment", server.environment)
        yield from refused(where, pick, FORMATS, "format", server.format)
        yield from refused(where, plugins.literals, "serve.runtimes", server.runtime)
        yield from refused(where, plugins.literals, BODIES, server.body)
        words = (*server.command, *server.variables.values())
        if server.command and len(study.threads) > 1 and not any("{threads}" in word for word in words):
            yield f"{where}the study has several 'threads', and neither command nor variables name {{threads}}"
        for word in words:
            for place in (name for name in re.findall(r"{(\w+)}", word) if name not in PLACES):
                yield where + str(unknown(f"place in {word!r}", place, PLACES))


def _recipe(study: Study, variant: str) -> Recipe:
    """The recipe of a variant. Raises BadInput that names its field."""
    return document.convert(msgspec.to_builtins(study.recipe) | study.variants.get(variant, {}), Recipe)


def _trainings(study: Study, dataset: str, size: int, architecture: str, framework: str) -> Iterator[Training]:
    """One a variant and seed."""
    for variant in study.variants or ("",):
        recipe = _recipe(study, variant)
        epochs = study.epochs_at.get(size, recipe.epochs)
        for seed in dict.fromkeys(study.seeds):
            yield Training(
                dataset=tables.dataset_name(dataset),
                path=dataset if tables.is_path(dataset) else "",
                size=size,
                architecture=architecture,
                framework=study.trained_in or framework,
                recipe=msgspec.structs.replace(recipe, seed=seed, epochs=epochs),
                variant=variant or None,
            )


def _exports(study: Study, training: Training, framework: str, left_out: list[str]) -> Iterator[Export]:
    """The study's formats in the precisions that this framework has for them; the others are added to `left_out`.

    So is a format that another framework of the study writes; one that none does becomes rows with a reason.
    """
    literals = plugins.literals("export.frameworks", framework)
    written = {name for each in study.frameworks for name in plugins.literals("export.frameworks", each)["WRITES"]}
    for form in dict.fromkeys(literals["WRITES"][0] if name == "native" else name for name in study.formats):
        if form in written and form not in literals["WRITES"]:
            left_out.append(f"{title(form)} from {title(framework)}: its exporter does not write it")
            continue
        for precision in dict.fromkeys(study.precisions):
            if precision == "float32" or form in literals.get(precision.upper(), ()):
                yield Export(training=training, framework=framework, format=form, precision=precision)
            else:
                had = ", ".join(map(title, literals.get(precision.upper(), ()))) or "no format"
                left_out.append(
                    f"{title(form)} in {precision} from {title(framework)}: its exporter writes {precision} in {had}"
                )


def _deployed(
    study: Study,
    export: Export,
    runtime: str,
    settings: Settings,
    threads: int,
    queued: Queued,
    profiles: tuple[LoadProfile, ...],
) -> Deployed:
    dispatch, batch_images, instances = queued
    deployment = Deployment(
        artifact=export.name,
        runtime=runtime,
        device=study.device,
        precision=export.precision,
        settings=settings,
        threads=threads,
        batch_sizes=study.batch_sizes,
        dispatch=dispatch,
        queue=study.queue,
        batch_images=batch_images,
        instances=instances,
        batch_delay_ms=study.batch_delay_ms,
        deadline_ms=study.deadline_ms if dispatch == "thread" else None,
    )
    offered = plugins.literals("serve.runtimes", runtime).get("MISTAKES", ())
    kept = tuple(
        profile
        for profile in profiles
        if _fits(study, profile, runtime, threads, offered)
        # In process nothing waits, and so nothing is put together.
        and (profile.mode != "in-process" or queued == _queues(study)[0])
    )
    return Deployed(export=export, deployment=deployment, profiles=kept)


def _copy(deployed: Deployed, number: int) -> Deployed:
    """The same under another name, without what is measured to show a mistake."""
    if not number:
        return deployed
    deployment = msgspec.structs.replace(deployed.deployment, copy=number)
    sound = tuple(profile for profile in deployed.profiles if profile.mistake is None)
    return msgspec.structs.replace(deployed, deployment=deployment, profiles=sound)


def _served(study: Study, export: Export, server: Server, threads: int, profiles: tuple[LoadProfile, ...]) -> Deployed:
    """An export behind a server that others wrote: under every load over HTTP that its requests have."""
    deployment = Deployment(
        artifact=export.name,
        runtime=server.runtime,
        device=study.device,
        threads=threads,
        batch_sizes=study.batch_sizes,
        server=server,
        environment=next((one for one in study.environments if one.name == server.environment), None),
    )
    kept = tuple(
        profile
        for profile in profiles
        if profile.mode != "in-process" and profile.mistake is None and (server.body == OIP or not profile.sends_json)
    )
    return Deployed(export=export, deployment=deployment, profiles=kept)


def _fits(study: Study, profile: LoadProfile, runtime: str, threads: int, offered: tuple[str, ...]) -> bool:
    """Whether a deployment is measured under a profile: a timing mistake where it applies, all threads in process."""
    if runtime == "null":
        # Without a model the generator is what is full, not the server.
        return profile.mistake is None and profile.load is None
    if profile.mistake is None:
        return threads in study.threads and bool(threads or profile.mode == "in-process")
    if profile.mistake == "default-threads":
        return threads == 0
    return threads == study.threads[0] and (profile.mistake != "predict" or profile.mistake in offered)
