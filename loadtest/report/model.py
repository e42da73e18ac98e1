"""A report as plain data, which is written as HTML and as Markdown."""

import re
from typing import Literal

from msgspec import Struct

Tone = Literal["", "strong", "muted", "good", "warn", "bad"]


class Piece(Struct, frozen=True):
    """A part of a sentence in one tone."""

    text: str
    tone: Tone = ""


Sentence = tuple[Piece, ...]


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


class Terms(Struct, frozen=True):
    """Terms with their explanations."""

    title: str
    items: tuple[tuple[str, str], ...]


class Commands(Struct, frozen=True):
    """Lines for a shell."""

    lines: tuple[str, ...]


class Panel(Struct, frozen=True):
    """One picture of a figure, as an SVG element without fixed size."""

    svg: str
    alt: str


class Figure(Struct, frozen=True):
    """Panels side by side, two per row if `paired`. `key` explains the marks; `svg` and `png` are files."""

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    key: tuple[tuple[str, Mark], ...]
    svg: str
    png: bytes
    paired: bool = False


class Section(Struct, frozen=True):
    """A section. `name` is its anchor."""

    name: str
    title: str
    blocks: tuple[Table | Figure | Terms | Commands, ...]
    intro: str = ""

    def called(self, block: Table | Figure | Terms | Commands) -> str:
        """The anchor of a block, and the name of its files: a figure has its own, a table one by section and title."""
        if isinstance(block, Figure):
            return block.name
        title = block.title if isinstance(block, Table | Terms) else ""
        return re.sub(r"[^a-z0-9]+", "-", f"{self.name} {title}".lower()).strip("-")


class Page(Struct, frozen=True):
    """The whole report. `cautions` limit the use of its numbers."""

    title: str
    study: str
    facts: tuple[str, ...]
    unofficial: bool
    answer: tuple[Sentence, ...]
    podium: Table | None
    cautions: tuple[str, ...]
    sections: tuple[Section, ...]
