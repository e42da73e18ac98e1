"""What serving costs beside latency: processor time, memory, disk, and the time to the first answer."""

from loadtest.report import comparison
from loadtest.report.cells import deployment_cells
from loadtest.report.comparison import by_deployment
from loadtest.report.facts import Facts
from loadtest.report.wording import Labels
from loadtest.results.tabular import Cell, Column, Line, Table
from medserve.numbers import ABSENT, number

MIB = 2**20


def table(facts: Facts) -> Table | None:
    """One line per deployment and size, from the closed loop of one user; null if the study has none."""
    profile = comparison.single_image(facts.profiles.values(), "closed-loop")
    if profile is None:
        return None
    labels = Labels(facts.rows)
    columns = (
        Column("deployment", numeric=False),
        Column("size", "px"),
        Column("per request", "ms", "Processor time of the server"),
        Column("per correct prediction", "ms", "Processor time of the server"),
        Column("peak memory", "MiB", "Server"),
        Column("importing", "s", "Cold start"),
        Column("loading", "s", "Cold start"),
        Column("start to ready", "s", "Cold start"),
        Column("to the first answer", "s", "Cold start"),
        Column("model", "MiB on disk"),
    )
    lines = []
    for group in by_deployment(facts.rows):
        row = group.get(profile)
        if row is None or row.status != "done":
            continue
        artifact = facts.artifacts.get(row.source_artifact)
        correct = row.cpu_ms / row.accuracy if row.cpu_ms and row.accuracy else None
        disk = artifact.model_bytes / MIB if artifact and artifact.model_bytes and row.framework else None
        memory = row.peak_memory_bytes / MIB if row.peak_memory_bytes else None
        start = (row.import_seconds, row.load_seconds, row.ready_seconds, row.first_answer_seconds)
        values = (row.cpu_ms, correct, memory, *start, disk)
        cells = deployment_cells(facts, labels, row)
        cells += [Cell(ABSENT if value is None else number(value), value=value) for value in values]
        lines.append(Line(tuple(cells)))
    caption = (
        "Medians over launches, of the closed loop of one user. Importing: from the start of the process until its "
        "libraries are imported; loading: the model read, every declared batch size run, and its scores checked."
    )
    return Table("Serving", columns, tuple(lines), caption) if lines else None
