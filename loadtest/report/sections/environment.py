"""The environment of the measurements: machine, cores, threads, versions, launches, data."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from loadtest.report import tables, wording
from loadtest.report.document import Terms
from loadtest.report.facts import Facts
from loadtest.report.tables import Field, field, text
from loadtest.results.tabular import Cell, Table
from medserve.jobs import Tuned
from medserve.numbers import ABSENT
from medserve.progress import duration
from medserve.study import Study
from medserve.tables import title

Read = list[dict[str, Any]]
"""What was read of the processes of each result, by its part: timer, server, client."""
MIB = 2**20
INSIDE = ("timer", "server")
"""The parts in which a runtime is."""
OVER_HTTP = ("server", "client")
PAUSE_SECONDS = 300.0
"""Between two results that is longer, a run rested."""


def data(facts: Facts) -> Terms:
    """The data sets that the networks were trained and tested on, with their licences."""
    pairs = []
    for known in facts.checkpoints.values():
        unofficial = "unofficial files" if known.unofficial else ""
        digest = f"digest of the {known.size} px images: {known.data_digest[:16]}" if known.data_digest else ""
        ends = "each file's" if known.window == "file" else " to ".join(f"{end:g}" for end in known.window or ())
        window = f"window of grey values: {ends}" if ends else ""
        pairs += [(wording.dataset(known.dataset), word) for word in (known.licence, unofficial, window, digest)]
    return _terms("Data", pairs)


def machine(facts: Facts) -> Terms:
    """The machine by the results; every value if they differ."""
    seen = [result.machine for result in facts.results if result.machine]
    loads = [known["load_average"][0] for known in seen if known.get("load_average")]
    items = [
        ("Processor", _join(str(known.get("cpu")) for known in seen)),
        ("Cores", _join(f"{known.get('cores_usable')} usable of {known.get('cores_online')} online" for known in seen)),
        ("Hyper-threads", _join(_siblings(known.get("smt_siblings") or []) for known in seen)),
        ("Memory", _join(_gibibytes(known.get("memory_bytes")) for known in seen)),
        ("Virtual machine", _join("yes" if known.get("virtual") else "no" for known in seen)),
        ("Frequency governor", _join(known.get("governor") or "not reported by the system" for known in seen)),
        ("GPU", _join("; ".join(known.get("gpus") or []) or "none" for known in seen)),
        ("Kernel", _join(f"{known.get('system')}, {known.get('architecture')}" for known in seen)),
    ]
    if loads:
        items.append(("Load when launches began", f"{min(loads):.2f} to {max(loads):.2f} (mean of one minute)"))
    return _terms("Machine", items)


def processes(facts: Facts) -> Table | None:
    """Cores and threads that the running processes had, by runtime."""
    found: dict[tuple[str, int], Read] = {}
    for result in facts.results:
        deployment = result.cell.deployment
        found.setdefault((deployment.runtime, deployment.threads), []).append(result.process)
    cores, threads = "Cores of the", "Threads of the runtime"
    fields: list[Field[tuple[tuple[str, int], Read]]] = [
        text("runtime", lambda process: title(process[0][0])),
        text("timer", lambda process: _read(process[1], ["timer"], "affinity"), cores),
        text("server", lambda process: _read(process[1], ["server"], "affinity"), cores),
        text("load generator", lambda process: _read(process[1], ["client"], "affinity"), cores),
        field("asked", lambda process: process[0][1], "", threads),
        field("read back", lambda process: _read(process[1], INSIDE, "threads", of_runtime=True), "", threads),
        field("total", lambda process: _read(process[1], ["server"], "os_threads"), "server", threads),
        field("peak memory", lambda process: _peak(process[1]), "MiB, server"),
        text("float32 exact", lambda process: _read(process[1], INSIDE, "float32_exact", of_runtime=True)),
    ]
    return tables.table("Cores and threads, read back", fields, found.items())


def settings(facts: Facts) -> Table | None:
    """What was chosen for each tuned deployment, on launches that are not among the results; null without any."""

    def chosen(one: Tuned) -> Cell:
        taken = [setting for setting in one.settings if one.chosen.get(setting.option) == setting.value]
        words = ", ".join(f"{setting.option}={setting.value}" for setting in taken) or "the defaults"
        return Cell(words, "; ".join(f"{setting.why} ({setting.source})" for setting in taken))

    fields: list[Field[Tuned]] = [
        text("deployment", lambda one: one.deployment.name),
        text("chosen", chosen),
        field("latency over the defaults", lambda one: one.ratio, "when tuned"),
        field("tried", lambda one: len(one.candidates)),
    ]
    return tables.table("Tuned settings", fields, facts.tuned)


def _read(read: Read, parts: Sequence[str], name: str, *, of_runtime: bool = False) -> str:
    """What the processes of some parts read back, each value once."""
    known = [process[part] for part in parts for process in read if process.get(part)]
    values = [(facts.get("runtime") or {} if of_runtime else facts).get(name) for facts in known]
    return _join(_word(value) for value in values if value is not None) or ABSENT


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _peak(read: Read) -> int | None:
    peaks = [(process.get("server") or {}).get("peak_memory_bytes") or 0 for process in read]
    return max(peaks, default=0) // MIB or None


def versions(facts: Facts) -> Terms:
    """Every version that a result was measured with."""
    return _terms("Versions", (pair for result in facts.results for pair in result.machine.get("versions", {}).items()))


def launches(facts: Facts) -> Terms:
    """How often, in which order and when cells were measured."""
    study = facts.study
    done = sum(result.status == "done" for result in facts.results)
    asked = study.launches * (len(facts.rows) + len(facts.mistaken))
    started = [result.started for result in facts.results]
    items = [
        ("Launches of each cell", f"{study.launches}, each in a fresh process, in a new random order of deployments"),
        ("Cells measured", f"{done:,} of {asked:,} (deployment, way of measuring, launch)"),
        ("Dispatch", _dispatch(study)),
    ]
    items += [
        (f"The study was changed on {_moment(change.when)}", ", ".join(change.fields)) for change in facts.changes
    ]
    items += [
        (wording.profile(known), f"{known.seconds:g} s after {known.warmup_seconds:g} s of warm-up")
        for deployed in facts.plan.deployed
        for known in deployed.profiles
    ]
    if started:
        items.append(("Measured", f"{_moment(min(started))} to {_moment(max(started))}"))
        items.append(("Time spent measuring", duration(sum(result.seconds for result in facts.results))))
    return _terms("Launches", items)


def block_seconds(facts: Facts) -> float:
    """How long one launch of each deployment took, without pauses of the run."""
    times = [datetime.fromisoformat(result.started).timestamp() for result in facts.results]
    spans = [min(later - sooner, PAUSE_SECONDS) for sooner, later in pairwise(times)]
    return sum(spans) / max(1, len({result.launch for result in facts.results}))


def when(facts: Facts) -> str:
    """The days of the measurements."""
    days = sorted({datetime.fromisoformat(result.started).date() for result in facts.results})
    if not days:
        return "Nothing measured yet"
    first, last = (f"{day.day} {day:%B %Y}" for day in (days[0], days[-1]))
    return f"Measured on {first}" if first == last else f"Measured from {first} to {last}"


def where(facts: Facts) -> str:
    """The machine in a few words."""
    seen = [result.machine for result in facts.results if result.machine]
    return _join(
        f"{known.get('cpu')}, {wording.several(known.get('cores_usable') or 1, 'core')}"
        + ", virtual machine" * bool(known.get("virtual"))
        for known in seen
    )


def busiest(facts: Facts) -> tuple[float, int] | None:
    """The highest load when a launch began, and the usable cores; null if the system does not report them."""
    seen = [result.machine for result in facts.results if result.machine.get("load_average")]
    return max(((known["load_average"][0], known.get("cores_usable") or 1) for known in seen), default=None)


def shared_cores(facts: Facts) -> bool:
    """Whether a server and its load generator ran on the same cores."""
    cores = ([result.process.get(part, {}).get("affinity") or () for part in OVER_HTTP] for result in facts.results)
    return any(set(server) & set(client) for server, client in cores)


def _dispatch(study: Study) -> str:
    words = [", ".join(study.dispatches), f"batch sizes made ready: {', '.join(map(str, study.batch_sizes))}"]
    if max(study.batch_images) > 1:
        images = " or ".join(map(str, study.batch_images))
        words.append(f"batches of up to {images} images, waiting for at most {study.batch_delay_ms:g} ms")
    if max(study.instances) > 1:
        words.append(f"{' or '.join(map(str, study.instances))} instances of the model")
    if study.deadline_ms is not None:
        words.append(f"a deadline of {study.deadline_ms:g} ms")
    return "; ".join(words)


def _terms(title: str, pairs: Iterable[tuple[str, str]]) -> Terms:
    """Each term with all that was seen of it, each once; a term of which nothing was seen is left out."""
    found: dict[str, list[str]] = {}
    for name, word in pairs:
        found.setdefault(name, []).append(word)
    return Terms(title, tuple((name, _join(words)) for name, words in found.items() if any(words)))


def _join(words: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(filter(None, words)))


def _siblings(groups: list[list[int]]) -> str:
    shared = [group for group in groups if len(group) > 1]
    return f"cores {', '.join('+'.join(map(str, group)) for group in shared)} share" if shared else "none shared"


def _gibibytes(size: int | None) -> str:
    return "" if size is None else f"{size / 2**30:.1f} GiB"


def _moment(started: str) -> str:
    return f"{datetime.fromisoformat(started).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
