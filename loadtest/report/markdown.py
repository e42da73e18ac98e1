"""The report as Markdown: the same tables, the figures by their files."""

import re

from loadtest.report.model import Cell, Column, Commands, Figure, Page, Sentence, Table, Terms

_SPECIAL = re.compile(r"([\\`*_<>|~]|(?<=\])\()")


def write(page: Page) -> str:
    """The whole report as one text."""
    parts = [f"# {_plain(page.title)}" + (" (unofficial)" if page.unofficial else "")]
    parts.append("  \n".join(_plain(fact) for fact in page.facts))
    parts.append(" ".join(_sentence(sentence) for sentence in page.answer))
    parts += table(page.podium) if page.podium else []
    if page.cautions:
        parts.append("\n".join(f"> - {_plain(caution)}" for caution in page.cautions))
    for section in page.sections:
        parts.append(f"## {_plain(section.title)}")
        parts += [_plain(section.intro)] if section.intro else []
        for block in section.blocks:
            parts += _block(block)
    return "\n\n".join(parts) + "\n"


def _block(block: Table | Figure | Terms | Commands) -> list[str]:
    match block:
        case Table():
            return _heading(block.title) + table(block)
        case Figure():
            alternative = _plain("; ".join(panel.alt for panel in block.panels))
            picture = f"![{alternative}](figures/{block.name}.svg)"
            return [*_heading(block.title), picture, f"*{_plain(block.caption)}*"]
        case Terms():
            lines = [f"- **{_plain(term)}**: {_plain(text)}" for term, text in block.items]
            return [*_heading(block.title), "\n".join(lines)]
        case Commands():
            return ["\n".join(f"    {line}" for line in block.lines)]


def _heading(title: str) -> list[str]:
    return [f"### {_plain(title)}"] if title else []


def table(found: Table) -> list[str]:
    """A table with its remarks, notes and caption, without its title: paragraphs."""
    rows = [[_column(column) for column in found.columns]]
    rows.append(["---:" if column.numeric else "---" for column in found.columns])
    rows += [[_cell(cell) for cell in line.cells] for line in found.lines]
    parts = ["\n".join(f"| {' | '.join(row)} |" for row in rows)]
    remarks = [(line.cells[0], remark) for line in found.lines for remark in line.remarks]
    if remarks:
        parts.append("\n".join(f"- **{_cell(cell)}**: {_plain(remark)}" for cell, remark in remarks))
    if found.notes:
        parts.append("\n".join(f"- {_plain(note)}" for note in found.notes))
    return parts + ([_plain(found.caption)] if found.caption else [])


def _column(column: Column) -> str:
    group = f"{column.group}: " if column.group else ""
    return _plain(f"{group}{column.title}" + (f", {column.unit}" if column.unit else ""))


def _cell(cell: Cell) -> str:
    text = f"**{_plain(cell.text)}**" if cell.tone in ("strong", "bad") else _plain(cell.text)
    return f"{text} {_plain(cell.note)}".rstrip()


def _sentence(sentence: Sentence) -> str:
    return "".join(f"**{_plain(piece.text)}**" if piece.tone == "strong" else _plain(piece.text) for piece in sentence)


def _plain(text: str) -> str:
    """Text with Markdown's markup escaped: a reason or a name holds none."""
    return _SPECIAL.sub(r"\\\1", re.sub(r"\s+", " ", text).replace("&", "&amp;"))
