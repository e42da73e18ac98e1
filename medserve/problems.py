"""What is wrong with a study beyond the types of its fields: every reason, a line each."""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import product

from medserve import measures, plugins, tables
from medserve.errors import BadInput, check_name, unknown
from medserve.spec import BODIES, PLACES, Deployment, check_window
from medserve.study import Study
from medserve.tables import ARCHITECTURES, DATASETS, FORMATS, pick


def problems(study: Study) -> Iterator[str]:
    """The reasons for which a study cannot be; the same one may come several times."""

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
        yield from refused(f"'variants.{variant}': ", study.recipe_of, variant)
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
    if (most := max(1, len(study.parts))) < study.part[1]:
        yield f"'shard' is {study.shard}; it has at most {most} parts: its data sets with their networks, its models"
    if study.window is not None and not own:
        yield "'window' is for images of one's own; 'datasets' names no path"
    for dataset, size in product((name for name in study.datasets if name in DATASETS), study.sizes):
        yield from refused("", tables.check_size, DATASETS[dataset], size)
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
    for dispatch, batch_images, instances in study.queues:
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


def _has_loads(study: Study) -> bool:
    """Whether anything is measured at a share of its capacity."""
    with suppress(BadInput):  # `problems` says what is wrong with a line
        return any(one.load is not None for measure in study.measure for one in measures.profiles_of(measure))
    return False
