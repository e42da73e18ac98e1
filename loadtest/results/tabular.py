"""A table as plain data, and its writers: Markdown, LaTeX, CSV and a terminal; the report's template writes HTML."""

import csv
import io
import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import rich.table
from msgspec import Struct
from rich.text import Text

from loadtest.analysis.intervals import Interval
from medserve.numbers import interval, number

Tone = Literal["", "strong", "muted", "good", "warn", "bad"]
STYLES: dict[Tone, str] = {"": "", "strong": "bold", "muted": "dim", "good": "green", "warn": "yellow", "bad": "red"}
"""Of the tones on a terminal."""
SPECIAL = re.compile(r"([\\`*_<>|~]|(?<=\])\()")
"""The markup of Markdown."""
FORMULA = ("=", "+", "-", "@", "\t", "\n")
"""How a cell begins that a spreadsheet may run as a formula (OWASP, CSV injection)."""
NUMBER = re.compile(r"[-+]?(\d+\.?\d*(e[-+]?\d+)?|inf|nan)")
SYMBOLS = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "%": r"\%", "&": r"\&", "_": r"\_", "#": r"\#", "$": r"\$",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "\N{NO-BREAK SPACE}": "~", "\N{EN DASH}": "--", "\N{MINUS SIGN}": r"$-$",
    "\N{MULTIPLICATION SIGN}": r"$\times$", "Δ": r"$\Delta$", "μ": r"$\mu$",
}  # fmt: skip
"""What LaTeX does not take as it is."""
SUPERSCRIPTS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


class Mark(Struct, frozen=True):
    """The mark of a deployment, as in the charts: colour by framework, disc native, diamond ONNX, square null."""

    colour: str
    shape: Literal["disc", "ring", "diamond", "square"] = "disc"


class Cell(Struct, frozen=True):
    """A value of a table. `note` is muted beside it, `value` sorts the column (full precision), `hint` is a tooltip."""

    text: str
    note: str = ""
    value: float | None = None
    hint: str = ""
    tone: Tone = ""
    mark: Mark | None = None


class Column(Struct, frozen=True):
    """A column. `group` is the heading above neighbouring columns of the same group."""

    title: str
    unit: str = ""
    group: str = ""
    numeric: bool = True


class Line(Struct, frozen=True):
    """A row; `remarks` are below it, across all columns."""

    cells: tuple[Cell, ...]
    remarks: tuple[str, ...] = ()


class Table(Struct, frozen=True):
    """A table; `notes` are folded below it."""

    title: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    caption: str = ""
    notes: tuple[str, ...] = ()

    @property
    def groups(self) -> list[tuple[str, int]]:
        """The headings above the columns, each with its span; empty over columns of no group."""
        found: list[tuple[str, int]] = []
        for column in self.columns:
            if found and column.group and found[-1][0] == column.group:
                found[-1] = (column.group, found[-1][1] + 1)
            else:
                found.append((column.group, 1))
        return found

    def starts(self, place: int) -> bool:
        """Whether another group ends before the column at `place`."""
        return place > 0 and self.columns[place - 1].group != self.columns[place].group


def number_cell(value: float | None) -> Cell:
    """A number, or a dash."""
    return Cell(number(value), value=value)


def interval_cell(found: Interval) -> Cell:
    """A value with its interval, or a dash."""
    return Cell(number(found.value), interval(found.low, found.high), found.value)


def forms(table: Table) -> Iterator[tuple[str, str]]:
    """A table as the content of files, by their ending."""
    yield "csv", as_csv(table)
    yield "md", "\n\n".join(as_markdown(table)) + "\n"
    yield "tex", as_latex(table)


def as_terminal(found: Table) -> rich.table.Table:
    """A table for a terminal; a column with numbers keeps its width, texts fold."""
    made = rich.table.Table(
        title=found.title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    grouped = any(column.group for column in found.columns)
    for place, column in enumerate(found.columns):
        head = ", ".join(filter(None, (column.title, column.unit)))
        group = column.group if found.starts(place) or place == 0 else ""
        head = f"{group}\n{head}" if grouped else head
        if column.numeric:
            made.add_column(head, justify="right", no_wrap=True)
        else:
            made.add_column(head, overflow="fold")
    for line in found.lines:
        made.add_row(*(Text(f"{cell.text} {cell.note}".strip(), STYLES[cell.tone]) for cell in line.cells))
    return made


def as_markdown(found: Table) -> list[str]:
    """A table with its remarks, notes and caption, without its title: paragraphs."""
    rows = [[_markdown_column(column) for column in found.columns]]
    rows.append(["---:" if column.numeric else "---" for column in found.columns])
    rows += [[_markdown_cell(cell) for cell in line.cells] for line in found.lines]
    parts = ["\n".join(f"| {' | '.join(row)} |" for row in rows)]
    remarks = [(line.cells[0], remark) for line in found.lines for remark in line.remarks]
    if remarks:
        parts.append("\n".join(f"- **{_markdown_cell(cell)}**: {plain(remark)}" for cell, remark in remarks))
    if found.notes:
        parts.append("\n".join(f"- {plain(note)}" for note in found.notes))
    return parts + ([plain(found.caption)] if found.caption else [])


def _markdown_column(column: Column) -> str:
    group = f"{column.group}: " if column.group else ""
    return plain(f"{group}{column.title}" + (f", {column.unit}" if column.unit else ""))


def _markdown_cell(cell: Cell) -> str:
    text = f"**{plain(cell.text)}**" if cell.tone in ("strong", "bad") else plain(cell.text)
    return f"{text} {plain(cell.note)}".rstrip()


def plain(text: str) -> str:
    """Text with Markdown's markup escaped: a reason or a name holds none."""
    return SPECIAL.sub(r"\\\1", re.sub(r"\s+", " ", text).replace("&", "&amp;"))


def as_csv(table: Table) -> str:
    """Every cell: its value if it has one, else its text; notes have columns of their own."""
    places = range(len(table.columns))
    noted = [any(line.cells[place].note for line in table.lines) for place in places]
    remarked = any(line.remarks for line in table.lines)
    heads = []
    for column, beside in zip(table.columns, noted, strict=True):
        heads += [_head(column), *[f"{_head(column)} (beside)"] * beside]
    lines: list[list[str | float]] = [[*heads, *["remarks"] * remarked]]
    for line in table.lines:
        values: list[str | float] = []
        for cell, beside in zip(line.cells, noted, strict=True):
            values += [cell.text if cell.value is None else cell.value, *[cell.note] * beside]
        lines.append([*values, *["; ".join(line.remarks)] * remarked])
    return csv_lines(lines)


def csv_lines(lines: Iterable[Iterable[Any]]) -> str:
    """Lines of cells as CSV. A text that a spreadsheet would run as a formula gets an apostrophe before it."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_inert(value) for value in line] for line in lines)
    return text.getvalue()


def _inert(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    # The csv module does not quote a carriage return, at which spreadsheets begin a new line.
    text = value.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{text}" if text.startswith(FORMULA) and not NUMBER.fullmatch(text) else text


def as_latex(table: Table) -> str:
    """A tabular of the booktabs package; remarks and notes are comments above it."""
    words = [remark for line in table.lines for remark in line.remarks] + list(table.notes)
    said = [f"% {' '.join(word.split())}" for word in words]
    kinds = "".join("r" if column.numeric else "l" for column in table.columns)
    lines = [*said, f"\\begin{{tabular}}{{{kinds}}}", "\\toprule"]
    if any(group for group, _ in table.groups):
        spans = [f"\\multicolumn{{{span}}}{{l}}{{{_escaped(group)}}}" for group, span in table.groups]
        lines.append(f"{' & '.join(spans)} \\\\")
    heads = [_escaped(f"{column.title} ({column.unit})" if column.unit else column.title) for column in table.columns]
    lines += [f"{' & '.join(heads)} \\\\", "\\midrule"]
    lines += [f"{' & '.join(map(_latex_cell, line.cells))} \\\\" for line in table.lines]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _head(column: Column) -> str:
    return ", ".join(filter(None, (column.group, column.title, column.unit)))


def _latex_cell(cell: Cell) -> str:
    text = _escaped(cell.text)
    text = f"\\textbf{{{text}}}" if cell.tone == "strong" else text
    return f"{text} {{\\footnotesize {_escaped(cell.note)}}}" if cell.note else text


def _escaped(text: str) -> str:
    raised = re.sub("[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda found: f"\x00{found[0].translate(SUPERSCRIPTS)}\x01", text)
    written = "".join(SYMBOLS.get(sign, sign) for sign in raised)
    return written.replace("\x00", "$^{").replace("\x01", "}$")
