"""A table of the report as a file: CSV with full precision, Markdown, and LaTeX for a paper."""

import re
from collections.abc import Iterator

from loadtest.report import markdown
from loadtest.report.model import Cell, Column, Table
from loadtest.results import writers

SYMBOLS = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "%": r"\%", "&": r"\&", "_": r"\_", "#": r"\#", "$": r"\$",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "\N{NO-BREAK SPACE}": "~", "\N{EN DASH}": "--", "\N{MINUS SIGN}": r"$-$",
    "\N{MULTIPLICATION SIGN}": r"$\times$", "Δ": r"$\Delta$", "μ": r"$\mu$",
}  # fmt: skip
"""What LaTeX does not take as it is."""
SUPERSCRIPTS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


def forms(table: Table) -> Iterator[tuple[str, str]]:
    """A table in each form, by the ending of its file."""
    yield "csv", as_csv(table)
    yield "md", "\n\n".join(markdown.table(table)) + "\n"
    yield "tex", as_latex(table)


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
    return writers.as_csv(lines)


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
    lines += [f"{' & '.join(map(_cell, line.cells))} \\\\" for line in table.lines]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _head(column: Column) -> str:
    return ", ".join(filter(None, (column.group, column.title, column.unit)))


def _cell(cell: Cell) -> str:
    text = _escaped(cell.text)
    text = f"\\textbf{{{text}}}" if cell.tone == "strong" else text
    return f"{text} {{\\footnotesize {_escaped(cell.note)}}}" if cell.note else text


def _escaped(text: str) -> str:
    raised = re.sub("[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda found: f"\x00{found[0].translate(SUPERSCRIPTS)}\x01", text)
    written = "".join(SYMBOLS.get(sign, sign) for sign in raised)
    return written.replace("\x00", "$^{").replace("\x01", "}$")
