"""The report as Markdown: the same tables, the figures by their files."""

from loadtest.report.model import Commands, Figure, Page, Sentence, Terms
from loadtest.results.tabular import Table, as_markdown, plain


def write(page: Page) -> str:
    """The whole report as one text."""
    parts = [f"# {plain(page.title)}" + (" (unofficial)" if page.unofficial else "")]
    parts.append("  \n".join(plain(fact) for fact in page.facts))
    parts.append(" ".join(_sentence(sentence) for sentence in page.answer))
    parts += as_markdown(page.podium) if page.podium else []
    if page.cautions:
        parts.append("\n".join(f"> - {plain(caution)}" for caution in page.cautions))
    for section in page.sections:
        parts.append(f"## {plain(section.title)}")
        parts += [plain(section.intro)] if section.intro else []
        for block in section.blocks:
            parts += _block(block)
    return "\n\n".join(parts) + "\n"


def _block(block: Table | Figure | Terms | Commands) -> list[str]:
    match block:
        case Table():
            return _heading(block.title) + as_markdown(block)
        case Figure():
            alternative = plain("; ".join(panel.alt for panel in block.panels))
            picture = f"![{alternative}](figures/{block.name}.svg)"
            return [*_heading(block.title), picture, f"*{plain(block.caption)}*"]
        case Terms():
            lines = [f"- **{plain(term)}**: {plain(text)}" for term, text in block.items]
            return [*_heading(block.title), "\n".join(lines)]
        case Commands():
            return ["\n".join(f"    {line}" for line in block.lines)]


def _heading(title: str) -> list[str]:
    return [f"### {plain(title)}"] if title else []


def _sentence(sentence: Sentence) -> str:
    return "".join(f"**{plain(piece.text)}**" if piece.tone == "strong" else plain(piece.text) for piece in sentence)
