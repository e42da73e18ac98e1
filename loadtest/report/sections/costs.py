"""What it costs: serving beside its latency, and training with its scores, learning curves and time."""

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Literal

from msgspec.structs import replace

from loadtest.analysis.intervals import Interval
from loadtest.report import drawing, tables, wording
from loadtest.report.axes import Axis
from loadtest.report.document import Figure
from loadtest.report.drawing import Drawn
from loadtest.report.facts import Facts
from loadtest.report.figures import figure
from loadtest.report.tables import Field, field, text
from loadtest.results.row import Row, of_labels
from loadtest.results.tabular import Cell, Table
from medserve.models import Checkpoint, Epoch, Recipe
from medserve.numbers import number
from medserve.progress import duration
from medserve.study import Training

SeedGroup = tuple[Training, list[Checkpoint]]
"""A training, and its checkpoints of all seeds."""
MIB = 2**20
COSTS = (("images/s", "images_per_second"), ("seconds to finish", "train_seconds"))
"""Costs of training with their names in a checkpoint."""
TEST, SPEED, COST = "Test split", "Speed", "Cost"


def serving(facts: Facts) -> Table | None:
    """One line per deployment and size, from the closed loop of one user; null if the study has none."""
    profiles = facts.single("closed-loop")
    rows = [row for row in facts.rows if row.profile in profiles and row.status == "done"]
    time, start = "Processor time of the server", "Cold start"
    fields: list[Field[Row]] = [
        *tables.deployment_fields(facts, lambda row: row),
        field("per request", lambda row: row.cpu_ms, "ms", time),
        field("per correct prediction", _per_correct, "ms", time),
        field("page faults", lambda row: row.faults, "per request", "Memory and scheduler"),
        field("context switches", lambda row: row.switches, "per request", "Memory and scheduler"),
        field("peak memory", lambda row: _mebibytes(row.peak_memory_bytes), "MiB", "Server"),
        field("importing", lambda row: row.import_seconds, "s", start),
        field("loading", lambda row: row.load_seconds, "s", start),
        field("start to ready", lambda row: row.ready_seconds, "s", start),
        field("to the first answer", lambda row: row.first_answer_seconds, "s", start),
        field("model", lambda row: _model_size(facts, row), "MiB on disk"),
    ]
    return tables.table("Serving", fields, rows)


def _per_correct(row: Row) -> float | None:
    is_of_images = not of_labels(row.task)
    return row.cpu_ms / row.accuracy if row.cpu_ms and row.accuracy and is_of_images else None


def _mebibytes(size: float | None) -> float | None:
    return size / MIB if size else None


def _model_size(facts: Facts, row: Row) -> float | None:
    artifact = facts.artifacts.get(row.source_artifact)
    return _mebibytes(artifact.model_bytes) if artifact and row.framework else None


def training(facts: Facts) -> Table | None:
    """One line per checkpoint of the study, with the reason if it is missing."""
    target = facts.study.target_accuracy or 0.0
    trained: list[Field[Checkpoint]] = [
        field("accuracy", lambda known: tables.share(known.test.accuracy, of_labels(known.task)), "%", TEST),
        field("balanced", lambda known: tables.share(known.test.balanced_accuracy, of_labels(known.task)), "%", TEST),
        field("AUC", lambda known: _auc(known.test.auc), "", TEST),
        field("images/s", lambda known: known.images_per_second, "median", SPEED),
        field("compile", lambda known: known.compile_seconds, "s", SPEED),
        field("time to finish", lambda known: _duration(known.train_seconds), "", SPEED),
        field(f"to {target:.0%} (validation)", lambda known: _reached(known, target), "", SPEED, shown=bool(target)),
        field("CPU", lambda known: sum(epoch.cpu_seconds or 0.0 for epoch in known.history) or None, "s", COST),
        field("peak memory", lambda known: known.peak_memory_bytes and known.peak_memory_bytes / 1e6, "MB", COST),
        field("parameters", lambda known: known.parameters),
    ]

    def checkpoint(asked: Training) -> Checkpoint | None:
        return facts.checkpoints.get(asked.name)

    def recipe(asked: Training) -> Recipe:
        return (checkpoint(asked) or asked).recipe

    fields: list[Field[Training]] = [
        text("framework", lambda asked: tables.framework(asked.framework, hint=asked.name)),
        *tables.network_fields(facts, lambda asked: asked),
        *tables.of(checkpoint, trained),
        field("epochs", lambda asked: recipe(asked).epochs),
        field("batch", lambda asked: recipe(asked).batch),
        field("seed", lambda asked: recipe(asked).seed),
    ]

    def remarks(asked: Training) -> tuple[str, ...]:
        return () if checkpoint(asked) else (facts.why_not(asked) or "not trained yet",)

    return tables.table("Training", fields, facts.plan.trainings, remarks=remarks)


def _auc(value: float | None) -> Cell | None:
    return None if value is None else Cell(f"{value:.4f}", value=value)


def _duration(seconds: float, beside: str = "") -> Cell:
    return Cell(duration(seconds), beside, seconds)


def _reached(checkpoint: Checkpoint, target: float) -> Cell:
    """The seconds of training until the validation accuracy first reached the target."""
    seconds = 0.0
    for epoch in checkpoint.history:
        seconds += epoch.seconds
        if epoch.val_accuracy >= target:
            return _duration(seconds, f"epoch {epoch.epoch}")
    return Cell("not reached", tone="muted")


def seeds(facts: Facts) -> Table | None:
    """Mean and standard deviation over the seeds, never the best seed; null with one seed."""
    groups: dict[Training, list[Checkpoint]] = {}
    for asked in facts.plan.trainings:
        if checkpoint := facts.checkpoints.get(asked.name):
            groups.setdefault(replace(asked, recipe=Recipe()), []).append(checkpoint)

    def network(group: SeedGroup) -> Training:
        return group[0]

    def spread(group: SeedGroup, name: str, scale: int, digits: int) -> Cell:
        values = [scale * getattr(checkpoint.test, name) for checkpoint in group[1]]
        deviation = f"\N{PLUS-MINUS SIGN} {stdev(values):.{digits}f}" if len(values) > 1 else ""
        note = " ".join(filter(None, (deviation, of_labels(group[1][0].task) * (name != "auc"))))
        return Cell(f"{fmean(values):.{digits}f}", note, fmean(values))

    fields: list[Field[SeedGroup]] = [
        text("framework", lambda group: tables.framework(group[0].framework)),
        *tables.network_fields(facts, network),
        field("seeds", lambda group: len(group[1])),
        field("accuracy", lambda group: spread(group, "accuracy", 100, 2), "%"),
        field("balanced", lambda group: spread(group, "balanced_accuracy", 100, 2), "%"),
        field("AUC", lambda group: spread(group, "auc", 1, 4)),
    ]
    return tables.table("Over the seeds", fields, groups.items() if len(facts.study.seeds) > 1 else ())


def curves(facts: Facts) -> Figure | None:
    """Loss and validation accuracy by epoch, two panels per size; null if nothing was trained for two epochs."""
    panels = []
    for group in _by_network(facts).values():
        if (last := max(len(checkpoint.history) for checkpoint in group)) > 1:
            place = facts.place(group[0])
            losses = [(at, epoch, epoch.loss, "loss") for at in group for epoch in at.history]
            shares = [(at, epoch, epoch.val_accuracy * 100, "%") for at in group for epoch in at.history]
            panels.append(_curve(facts, losses, last, "training loss", "linear", f"Loss, {place}"))
            title = f"Validation accuracy, {place}"
            accuracy = " ".join(filter(None, ("validation accuracy", of_labels(group[0].task))))
            panels.append(_curve(facts, shares, last, f"{accuracy}, %", "percent", title))
    return figure("training", "Training", panels, paired=True)


def _curve(
    facts: Facts,
    values: Sequence[tuple[Checkpoint, Epoch, float, str]],
    last: int,
    name: str,
    scale: Literal["linear", "percent"],
    title: str,
) -> Drawn:
    points = [
        drawing.point(
            checkpoint,
            checkpoint.name,
            f"{_named(facts, checkpoint)}, {checkpoint.size} px, epoch {epoch.epoch}: {number(value)} {unit}",
            Interval(value=value),
            x=Interval(value=epoch.epoch),
        )
        for checkpoint, epoch, value, unit in values
    ]
    step = max(1, round(last / 6))
    ticks = tuple(range(step, last + 1, step))
    x = Axis(title="epoch", ends=(0.5, last + 0.5), scale="linear", ticks=ticks, grid=False, form="d")
    return drawing.lines(points, x, Axis(title=name, over=[point.value for point in points], scale=scale), title)


def efficiency(facts: Facts) -> Figure | None:
    """Images per second and total seconds, a row per framework and size; null if nothing was trained."""
    trained = [checkpoint for group in _by_network(facts).values() for checkpoint in group]
    panels = []
    for unit, key in COSTS * bool(trained):
        points = []
        for checkpoint in trained:
            value = float(getattr(checkpoint, key))
            name = f"{facts.place(checkpoint)} {_named(facts, checkpoint)}"
            name += f", seed {checkpoint.recipe.seed}" * (len(facts.study.seeds) > 1)
            label = f"{name}: {number(value)} {unit}"
            points.append(drawing.point(checkpoint, name, label, Interval(value=value)))
        x = Axis(title=f"{unit} (log)", over=[point.value for point in points])
        panels.append(drawing.rows(points, x, unit.capitalize()))
    return figure("efficiency", "Cost of training", panels)


def _by_network(facts: Facts) -> dict[tuple[str, str, int], list[Checkpoint]]:
    """The checkpoints that were trained, by data set, architecture and size."""
    found: dict[tuple[str, str, int], list[Checkpoint]] = {}
    for asked in facts.plan.trainings:
        checkpoint = facts.checkpoints.get(asked.name)
        if checkpoint is not None and checkpoint.history:
            found.setdefault((asked.dataset, asked.architecture, asked.size), []).append(checkpoint)
    return found


def _named(facts: Facts, checkpoint: Checkpoint) -> str:
    """The framework, and the recipe if the study has several."""
    variant = next(asked.variant for asked in facts.plan.trainings if asked.name == checkpoint.name)
    return wording.framework(checkpoint.framework) + f", {variant}" * (len(facts.study.variants) > 1)
