"""A report as plain data, which is written as HTML and as Markdown."""

import re

from msgspec import Struct

from loadtest.results.tabular import Mark, Table, Tone


class Piece(Struct, frozen=True):
    """A part of a sentence in one tone."""

    text: str
    tone: Tone = ""


Sentence = tuple[Piece, ...]


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
