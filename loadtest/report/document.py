"""A report as plain data, and its two forms: the page (HTML) and the text (Markdown)."""

import re
from pathlib import Path
from typing import Any

import jinja2
from msgspec import Struct

from loadtest.results.tabular import Mark, Table, Tone, as_markdown, plain

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


class Piece(Struct, frozen=True):
    """A part of a sentence in one tone."""

    text: str
    tone: Tone = ""


Sentence = tuple[Piece, ...]


def say(form: str, **words: str) -> Sentence:
    """A sentence: `**strong**` and `~muted~` parts of `form`, into which the words are put as they are."""
    tones: dict[str, Tone] = {"*": "strong", "~": "muted"}
    parts = filter(None, re.split(r"(\*\*[^*]+\*\*|~[^~]+~)", form))
    return tuple(Piece(part.strip("*~").format(**words), tones.get(part[0], "")) for part in parts)


class Terms(Struct, frozen=True):
    """Terms with their explanations."""

    title: str
    items: tuple[tuple[str, str], ...]


class Commands(Struct, frozen=True):
    """Lines for a shell."""

    lines: tuple[str, ...]


class Panel(Struct, frozen=True):
    """One picture of a figure as an SVG element, with a text that describes it."""

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


Block = Table | Figure | Terms | Commands


class Section(Struct, frozen=True):
    """A section. `name` is its anchor."""

    name: str
    title: str
    blocks: tuple[Block, ...]
    intro: str = ""

    def called(self, block: Block) -> str:
        """The anchor of a block, and the name of its files: a figure has its own, a table one by section and title."""
        if isinstance(block, Figure):
            return block.name
        title = block.title if isinstance(block, Table | Terms) else ""
        return re.sub(r"[^a-z0-9]+", "-", f"{self.name} {title}".lower()).strip("-")


class Page(Struct, frozen=True):
    """The whole report. `picture` shows what the answer says; `cautions` limit the use of its numbers."""

    title: str
    study: str
    facts: tuple[str, ...]
    unofficial: bool
    answer: tuple[Sentence, ...]
    picture: Figure | None
    podium: Table | None
    cautions: tuple[str, ...]
    sections: tuple[Section, ...]


def render(template: str, **values: Any) -> str:
    """A template of the folder `templates` with these values, always escaped. An unknown name is an error."""
    return TEMPLATES.get_template(template).render(**values)


def html(page: Page) -> str:
    """The page as one file that loads nothing else."""
    return render("report.html.jinja", page=page, kind=lambda block: type(block).__name__.lower())


def markdown(page: Page) -> str:
    """The same tables as one text, the figures by their files."""
    parts = [f"# {plain(page.title)}" + (" (unofficial)" if page.unofficial else "")]
    parts.append("  \n".join(plain(fact) for fact in page.facts))
    parts.append(" ".join(_sentence(sentence) for sentence in page.answer))
    parts += _block(page.picture) if page.picture else []
    parts += as_markdown(page.podium) if page.podium else []
    if page.cautions:
        parts.append("\n".join(f"> - {plain(caution)}" for caution in page.cautions))
    for section in page.sections:
        parts.append(f"## {plain(section.title)}")
        parts += [plain(section.intro)] if section.intro else []
        for block in section.blocks:
            parts += _block(block)
    return "\n\n".join(parts) + "\n"


def _block(block: Block) -> list[str]:
    heading = [] if isinstance(block, Commands) or not block.title else [f"### {plain(block.title)}"]
    match block:
        case Table():
            return heading + as_markdown(block)
        case Figure():
            alternative = plain("; ".join(panel.alt for panel in block.panels))
            return [*heading, f"![{alternative}](figures/{block.name}.svg)", f"*{plain(block.caption)}*"]
        case Terms():
            return [*heading, "\n".join(f"- **{plain(term)}**: {plain(text)}" for term, text in block.items)]
        case Commands():
            return ["\n".join(f"    {line}" for line in block.lines)]


def _sentence(sentence: Sentence) -> str:
    return "".join(f"**{plain(piece.text)}**" if piece.tone == "strong" else plain(piece.text) for piece in sentence)
