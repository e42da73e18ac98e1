"""Cells and columns that several tables of the report share."""

from collections.abc import Mapping

from loadtest.report import wording
from loadtest.report.facts import Facts
from loadtest.report.wording import Labels
from loadtest.results.row import Row
from loadtest.results.tabular import Cell, Column, interval_cell
from medserve.numbers import ABSENT


def data_column(facts: Facts) -> list[Column]:
    """The column of the data set, if the study has several."""
    return [Column("data", numeric=False)] * (len(facts.study.datasets) > 1)


def deployment_cell(facts: Facts, labels: Labels, row: Row, hint: str = "") -> Cell:
    """The framework, beside it the kind of deployment and, if there are several, the data set."""
    kind = ", ".join([labels.kind(row), *facts.datasets(row.dataset)])
    return Cell(wording.framework(row.framework), kind, hint=hint, mark=wording.mark(row))


def deployment_cells(facts: Facts, labels: Labels, row: Row) -> list[Cell]:
    """The deployment and the image size."""
    return [deployment_cell(facts, labels, row), Cell(str(row.size), value=row.size)]


def median_cell(row: Row | None) -> Cell:
    """The median of a row with its interval, or a dash with the reason."""
    if row is None or row.p50.value is None:
        return Cell(ABSENT, tone="muted", hint=(row and row.reason) or "")
    return interval_cell(row.p50)


def remarks_by_profile(facts: Facts, reasons: Mapping[str, list[Row]]) -> tuple[str, ...]:
    """Each reason with the ways of measuring to which it applies."""
    return tuple(
        f"{'; '.join(wording.profile(facts.profiles[row.profile]) for row in rows)}: {reason}"
        for reason, rows in reasons.items()
    )
