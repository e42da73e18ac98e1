"""Tables from items by fields: a field is a column with what each item has in it."""

from collections.abc import Callable, Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

from loadtest.analysis.intervals import Interval
from loadtest.report import wording
from loadtest.report.facts import Facts, Group
from loadtest.results.row import Row
from loadtest.results.tabular import Cell, Column, Line, Mark, Table, interval_cell
from medserve.numbers import ABSENT, number, percent
from medserve.study import Training

T = TypeVar("T")
S = TypeVar("S")
Value = Cell | Interval | str | float | None
"""What `cell` writes: a count is an int, a measurement a float or an interval."""


class Field(NamedTuple, Generic[T]):
    """A column, and the value of an item in it; a column that is not `shown` is left out."""

    column: Column
    value: Callable[[T], Value]
    shown: bool = True


def field(title: str, value: Callable[[T], Value], unit: str = "", group: str = "", *, shown: bool = True) -> Field[T]:
    """A column of numbers."""
    return Field(Column(title, unit, group), value, shown)


def text(title: str, value: Callable[[T], Value], group: str = "", *, shown: bool = True) -> Field[T]:
    """A column of words."""
    return Field(Column(title, "", group, numeric=False), value, shown)


def table(
    title: str,
    fields: Sequence[Field[T]],
    items: Iterable[T],
    caption: str = "",
    *,
    remarks: Callable[[T], tuple[str, ...]] = lambda _: (),
    notes: tuple[str, ...] = (),
) -> Table | None:
    """A line per item with its remarks; null without items. The caption of its title comes from prose.toml."""
    caption = " ".join(filter(None, (wording.TABLES.get(title), caption)))
    shown = [known for known in fields if known.shown]
    lines = tuple(Line(tuple(cell(known.value(item)) for known in shown), remarks(item)) for item in items)
    return Table(title, tuple(known.column for known in shown), lines, caption, notes) if lines else None


def of(get: Callable[[T], S | None], fields: Sequence[Field[S]]) -> list[Field[T]]:
    """Fields of what an item has, with dashes where it has none."""

    def of_item(known: Field[S]) -> Field[T]:
        def value(item: T) -> Value:
            found = get(item)
            return None if found is None else known.value(found)

        return Field(known.column, value, known.shown)

    return [of_item(known) for known in fields]


def of_profile(profile: str, fields: Sequence[Field[Row]]) -> list[Field[Group]]:
    """Fields of a deployment's row under one profile."""
    return of(lambda group: group.get(profile), fields)


def cell(value: Value) -> Cell:
    """A value as it is written: a cell as it is, an absent number as a dash."""
    match value:
        case Cell():
            return value
        case str():
            return Cell(value)
        case None | Interval(value=None):
            return absent(value.reason if value else None)
        case Interval():
            return interval_cell(value)
        case int():
            return Cell(f"{value:,}", value=value)
        case _:
            return Cell(number(value), value=value)


def absent(reason: str | None = None) -> Cell:
    """A dash with its reason."""
    return Cell(ABSENT, hint=reason or "", tone="muted")


def less(value: float | None, other: float | None) -> float | None:
    """The difference of two numbers; null if one of them is absent."""
    return None if value is None or other is None else value - other


def median(row: Row) -> Value:
    """The median of a row with its interval, or a dash with the reason."""
    return absent(row.reason) if row.p50.value is None else row.p50


def share(found: Interval | float | None, of: str = "") -> Cell:
    """A share with its interval in per cent, and what it is a share of."""
    known = found if isinstance(found, Interval) else Interval(value=found)
    bounds = "" if known.low is None else f"[{percent(known.low)}, {percent(known.high)}]"
    return Cell(percent(known.value), " ".join(filter(None, (bounds, of))), known.value)


def framework(name: str | None, beside: str = "", hint: str = "") -> Cell:
    """A framework with its mark."""
    return Cell(wording.framework(name), beside, hint=hint, mark=Mark(wording.colour(name)))


def deployment(facts: Facts, row: Row, *beside: str, hint: str = "") -> Cell:
    """The framework, and beside it the kind of deployment and further words."""
    kind = ", ".join([facts.labels.kind(row), *beside])
    return Cell(wording.framework(row.framework), kind, hint=hint, mark=wording.mark(row))


def deployment_field(facts: Facts, of: Callable[[T], Row]) -> Field[T]:
    """The deployment of an item's row, with its data set if there are several."""
    return text("deployment", lambda item: deployment(facts, of(item), *facts.shown_dataset(of(item).dataset)))


def deployment_fields(facts: Facts, of: Callable[[T], Row]) -> list[Field[T]]:
    """The deployment and the image size of an item's row."""
    return [deployment_field(facts, of), field("size", lambda item: of(item).size, "px")]


def network_fields(facts: Facts, of: Callable[[T], Training]) -> list[Field[T]]:
    """What identifies an item's network beside its framework; a column where the study has several."""
    study = facts.study
    return [
        text("data", lambda item: wording.dataset(of(item).dataset), shown=len(facts.datasets) > 1),
        text("network", lambda item: of(item).architecture, shown=len(facts.networks) > 1),
        text("recipe", lambda item: of(item).variant or ABSENT, shown=len(study.variants) > 1),
        field("size", lambda item: of(item).size, "px"),
    ]


def first(group: Group) -> Row:
    """The first row of a deployment: what all its rows have in common is read from it."""
    return next(iter(group.values()))


def remarks(facts: Facts, reasons: Iterable[tuple[str, Row]], rows: int = 0) -> tuple[str, ...]:
    """Each reason once, with the ways of measuring to which it applies unless it applies to all `rows`."""
    found: dict[str, list[str]] = {}
    for reason, row in reasons:
        found.setdefault(reason, []).append(facts.profile(row))
    everywhere = len(found) == 1 and len(next(iter(found.values()))) == rows
    return tuple(reason if everywhere else f"{'; '.join(where)}: {reason}" for reason, where in found.items())
