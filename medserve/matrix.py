"""Spells a study out: the jobs and cells of its matrix. Pure functions; nothing is started here."""

from collections.abc import Iterator
from itertools import product

import msgspec

from medserve import measures, plugins, tables
from medserve.errors import BadInput, check_name
from medserve.models import Recipe
from medserve.problems import problems
from medserve.spec import OIP, Deployment, Environment, LoadProfile, Server, Settings
from medserve.study import ADOPTED, Deployed, Export, Model, Plan, Queued, Study, Training
from medserve.tables import FORMATS, title


def plan(study: Study) -> Plan:
    """The matrix of a study. Raises BadInput with every reason, a line each, for a combination that cannot be."""
    if found := list(dict.fromkeys(problems(study))):
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
    mine = {*study.parts[part - 1 :: parts]}
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
                for queued in study.queues
            ]
            alone += [
                _served(study, export, server, threads, profiles)
                for server in study.servers
                for threads in dict.fromkeys(study.threads)
                if (server.format, export.precision) == (export.format, "float32") and threads
            ]
            deployed += [_copy(one, number) for one in alone for number in range(study.copies + 1)]
        if study.null:
            deployed.append(_deployed(study, made[0], "null", "default", 1, study.queues[0], profiles))
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


def environments_of(study: Study, found: Plan) -> list[Environment]:
    """The environments that a study needs: of its frameworks and runtimes, and of the servers that it measures."""
    behind = [made.deployment.environment for made in found.deployed]
    return list(
        {one.name: one for one in (*study.environments, *behind) if one and (one.runs or one in behind)}.values()
    )


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


def _trainings(study: Study, dataset: str, size: int, architecture: str, framework: str) -> Iterator[Training]:
    """One a variant and seed."""
    for variant in study.variants or ("",):
        recipe = study.recipe_of(variant)
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
        and (profile.mode != "in-process" or queued == study.queues[0])
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
