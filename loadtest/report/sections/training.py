"""Training: test scores, learning curves and costs."""

from collections.abc import Iterable, Sequence
from statistics import fmean, stdev

from loadtest.report import drawing, scales, sheet, wording
from loadtest.report.cells import data_column
from loadtest.report.drawing import Axis, Drawn, Point
from loadtest.report.facts import Facts
from loadtest.report.model import Figure
from loadtest.results.tabular import Cell, Column, Line, Mark, Table
from medserve.numbers import ABSENT, number
from medserve.progress import duration
from medserve.spec import Checkpoint

COSTS = (("images/s", "images_per_second"), ("seconds to finish", "train_seconds"))
"""Costs of training with their names in a checkpoint."""


def table(facts: Facts) -> Table:
    """One line per checkpoint of the study, with the reason if it is missing."""
    columns = [Column("framework", numeric=False), *data_column(facts)]
    columns += [Column("network", numeric=False)] * (len(facts.study.architectures) > 1)
    columns += [Column("recipe", numeric=False)] * (len(facts.study.variants) > 1) + [Column("size", "px")]
    columns += [Column("accuracy", "%", "Test split"), Column("balanced", "%", "Test split")]
    columns += [Column("AUC", "", "Test split"), Column("images/s", "median", "Speed")]
    columns += [Column("compile", "s", "Speed"), Column("time to finish", "", "Speed")]
    target = facts.study.target_accuracy
    columns += [Column(f"to {target:.0%} (validation)", "", "Speed")] if target is not None else []
    columns += [Column("CPU", "s", "Cost"), Column("peak memory", "MB", "Cost"), Column("parameters")]
    columns += [Column("epochs"), Column("batch"), Column("seed")]
    lines = []
    for training in facts.plan.trainings:
        checkpoint = facts.checkpoints.get(training.name)
        name = wording.framework(training.framework)
        cells = [Cell(name, hint=training.name, mark=Mark(wording.colour(training.framework)))]
        cells += [Cell(name) for name in facts.datasets(training.dataset)]
        cells += [Cell(name) for name in facts.architectures(training.architecture)]
        cells += [Cell(training.variant or ABSENT)] * (len(facts.study.variants) > 1)
        cells.append(Cell(str(training.size), value=training.size))
        missing = [Cell(ABSENT, tone="muted")] * (9 + (target is not None))
        cells += _trained(checkpoint, target) if checkpoint else missing
        recipe = checkpoint.recipe if checkpoint else training.recipe
        cells += [Cell(str(value), value=value) for value in (recipe.epochs, recipe.batch, recipe.seed)]
        lines.append(Line(tuple(cells), () if checkpoint else (facts.why_not(training) or "not trained yet",)))
    return Table("Training", tuple(columns), tuple(lines))


def _trained(checkpoint: Checkpoint, target: float | None) -> list[Cell]:
    test = checkpoint.test
    cpu = [epoch.cpu_seconds for epoch in checkpoint.history if epoch.cpu_seconds is not None]
    memory = checkpoint.peak_memory_bytes
    return [
        Cell(f"{test.accuracy * 100:.2f}", value=test.accuracy),
        Cell(f"{test.balanced_accuracy * 100:.2f}", value=test.balanced_accuracy),
        Cell(f"{test.auc:.4f}", value=test.auc),
        Cell(number(checkpoint.images_per_second), value=checkpoint.images_per_second),
        Cell(number(checkpoint.compile_seconds), value=checkpoint.compile_seconds),
        Cell(duration(checkpoint.train_seconds), value=checkpoint.train_seconds),
        *([] if target is None else [_reached(checkpoint, target)]),
        Cell(number(sum(cpu)) if cpu else ABSENT, value=sum(cpu) if cpu else None),
        Cell(ABSENT if memory is None else number(memory / 1e6), value=memory),
        Cell(f"{checkpoint.parameters:,}", value=checkpoint.parameters),
    ]


def _reached(checkpoint: Checkpoint, target: float) -> Cell:
    """The seconds of training until the validation accuracy first reached the target."""
    seconds = 0.0
    for epoch in checkpoint.history:
        seconds += epoch.seconds
        if epoch.val_accuracy >= target:
            return Cell(duration(seconds), f"epoch {epoch.epoch}", seconds)
    return Cell("not reached", tone="muted")


def curves(facts: Facts) -> Figure | None:
    """Loss and validation accuracy by epoch, two panels per size; null if nothing was trained for two epochs."""
    panels, trained = [], _trained_ones(facts)
    for group in _by_model(trained).values():
        if (last := max(len(checkpoint.history) for checkpoint in group)) > 1:
            place = _place(facts, group[0])
            across = Axis(title="epoch", domain=(0.5, last + 0.5), log=False, ticks=_epochs(last), grid=False, form="d")
            losses = [
                _point(facts, checkpoint, epoch.epoch, epoch.loss, "loss")
                for checkpoint in group
                for epoch in checkpoint.history
            ]
            domain = scales.linear([point.spread for point in losses])
            panels.append(
                _panel(losses, across, Axis(title="training loss", domain=domain, log=False), f"Loss, {place}")
            )
            shares = [
                _point(facts, checkpoint, epoch.epoch, epoch.val_accuracy * 100, "%")
                for checkpoint in group
                for epoch in checkpoint.history
            ]
            domain = scales.percent([(point.value / 100, None, None) for point in shares])
            up = Axis(title="validation accuracy, %", domain=domain, log=False)
            panels.append(_panel(shares, across, up, f"Validation accuracy, {place}"))
    caption = (
        "After each epoch: the mean training loss, and the accuracy on the validation split, by framework. Each panel "
        "has its own axes."
    )
    return sheet.draw("training", "Training", caption, panels, _key(trained), paired=True) if panels else None


def efficiency(facts: Facts) -> Figure | None:
    """Images per second and total seconds, a row per framework and size; null if nothing was trained."""
    trained = _trained_ones(facts)
    if not trained:
        return None
    panels = []
    for unit, key in COSTS:
        points = [_cost(facts, checkpoint, unit, getattr(checkpoint, key)) for checkpoint in trained]
        x = Axis(title=f"{unit} (log)", domain=scales.logarithmic([point.spread for point in points]))
        panels.append(drawing.rows(points, x, unit.capitalize(), _ends(points, unit)))
    caption = (
        "The cost of training: images per second (median over steps, without compilation), and seconds from start to "
        "end, with evaluation. Seconds are not comparable between sizes with different numbers of epochs."
    )
    return sheet.draw("efficiency", "Cost of training", caption, panels, _key(trained))


def seeds(facts: Facts) -> Table | None:
    """Mean and standard deviation over the seeds, never the best seed; null with one seed."""
    groups: dict[tuple[str, str, int, str | None, str], list[Checkpoint]] = {}
    for training in facts.plan.trainings:
        if (checkpoint := facts.checkpoints.get(training.name)) is not None:
            key = (training.dataset, training.architecture, training.size, training.variant, training.framework)
            groups.setdefault(key, []).append(checkpoint)
    if len(facts.study.seeds) < 2 or not groups:
        return None
    columns = [Column("framework", numeric=False), *data_column(facts)]
    columns += [Column("network", numeric=False)] * (len(facts.study.architectures) > 1)
    columns += [Column("recipe", numeric=False)] * (len(facts.study.variants) > 1) + [Column("size", "px")]
    columns += [Column("seeds"), Column("accuracy", "%"), Column("balanced", "%"), Column("AUC")]
    lines = []
    for (dataset, architecture, size, variant, framework), trained in groups.items():
        cells = [Cell(wording.framework(framework), mark=Mark(wording.colour(framework)))]
        cells += [Cell(name) for name in (*facts.datasets(dataset), *facts.architectures(architecture))]
        cells += [Cell(variant or ABSENT)] * (len(facts.study.variants) > 1) + [Cell(str(size), value=size)]
        cells.append(Cell(str(len(trained)), value=len(trained)))
        for name, scale in (("accuracy", 100), ("balanced_accuracy", 100), ("auc", 1)):
            values = [scale * getattr(checkpoint.test, name) for checkpoint in trained]
            digits = 2 if scale == 100 else 4
            spread = f"\N{PLUS-MINUS SIGN} {stdev(values):.{digits}f}" if len(values) > 1 else ""
            cells.append(Cell(f"{fmean(values):.{digits}f}", spread, fmean(values)))
        lines.append(Line(tuple(cells)))
    caption = "Mean over the seeds, and their standard deviation."
    return Table("Over the seeds", tuple(columns), tuple(lines), caption)


def _trained_ones(facts: Facts) -> list[Checkpoint]:
    found = (facts.checkpoints.get(training.name) for training in facts.plan.trainings)
    return [checkpoint for checkpoint in found if checkpoint is not None and checkpoint.history]


def _by_model(trained: Iterable[Checkpoint]) -> dict[tuple[str, str, int], list[Checkpoint]]:
    found: dict[tuple[str, str, int], list[Checkpoint]] = {}
    for checkpoint in trained:
        found.setdefault((checkpoint.dataset, checkpoint.architecture, checkpoint.size), []).append(checkpoint)
    return found


def _place(facts: Facts, checkpoint: Checkpoint) -> str:
    return ", ".join(
        [*facts.datasets(checkpoint.dataset), *facts.architectures(checkpoint.architecture), f"{checkpoint.size} px"]
    )


def _variant(facts: Facts, checkpoint: Checkpoint) -> str:
    """A comma and the recipe's name, if the study has several."""
    named = (training.variant for training in facts.plan.trainings if training.name == checkpoint.name)
    return f", {next(named, None)}" if len(facts.study.variants) > 1 else ""


def _epochs(last: int) -> tuple[float, ...]:
    step = max(1, round(last / 6))
    return tuple(range(step, last + 1, step))


def _panel(points: Sequence[Point], x: Axis, y: Axis, title: str) -> Drawn:
    return drawing.lines(points, x, y, title, _ends(points, ""))


def _point(facts: Facts, checkpoint: Checkpoint, epoch: int, value: float, unit: str) -> Point:
    name = wording.framework(checkpoint.framework) + _variant(facts, checkpoint)
    return Point(
        series=checkpoint.name,
        framework=wording.framework(checkpoint.framework),
        colour=wording.colour(checkpoint.framework),
        kind="native",
        value=value,
        low=None,
        high=None,
        label=f"{name}, {checkpoint.size} px, epoch {epoch}: {number(value)} {unit}",
        x=float(epoch),
    )


def _cost(facts: Facts, checkpoint: Checkpoint, unit: str, value: float) -> Point:
    name = f"{_place(facts, checkpoint)} {wording.framework(checkpoint.framework)}{_variant(facts, checkpoint)}"
    name += f", seed {checkpoint.recipe.seed}" * (len(facts.study.seeds) > 1)
    return Point(
        series=name,
        framework=wording.framework(checkpoint.framework),
        colour=wording.colour(checkpoint.framework),
        kind="native",
        value=value,
        low=None,
        high=None,
        label=f"{name}: {number(value)} {unit}",
    )


def _ends(points: Sequence[Point], unit: str) -> str:
    least, most = (end(points, key=lambda point: point.value) for end in (min, max))
    return f"{number(least.value)} ({least.framework}) to {number(most.value)} {unit} ({most.framework})"


def _key(trained: Iterable[Checkpoint]) -> tuple[tuple[str, Mark], ...]:
    names = dict.fromkeys(checkpoint.framework for checkpoint in trained)
    return tuple((wording.framework(name), Mark(wording.colour(name))) for name in names)
