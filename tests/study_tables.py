"""`python tests/study_tables.py`: writes each table of the manuals that shows a study, derived from its bundle.

A table stands between `<!-- KIND of STUDY -->` and `<!-- end -->`, its bundle in `medserve/studies/bundles`. So
does the reference of a study's fields, which is derived from their types.
"""

import re
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from loadtest.results import bundle, table
from loadtest.results.row import Row
from loadtest.results.tabular import Cell, Column, Line, Table, as_markdown
from loadtest.results.writers import deployment_cells, marked_cell
from medserve import study_file
from medserve.numbers import percent

ROOT = Path(__file__).parents[1]
BUNDLES = ROOT / "medserve" / "studies" / "bundles"
MANUALS = ("README.md", "medserve/studies/README.md")
MARKED = re.compile(r"(<!-- (\w+) of ([\w-]+) -->\n).*?(\n<!-- end -->)", re.DOTALL)
MODES = ("in-process", "closed-loop", "open-loop")
COLUMNS = (
    *(Column("px"), Column("framework", numeric=False), Column("runtime", numeric=False)),
    *(Column("in process p50"), Column("closed loop p50"), Column("closed loop p99")),
    *(Column("open loop p50"), Column("open loop p99"), Column("accuracy")),
)


def derived(text: str) -> str:
    """The text with every marked table as its bundle says."""
    return MARKED.sub(lambda found: found[1] + KINDS[found[2]](BUNDLES / f"{found[3]}.zip") + found[4], text)


def latency(path: Path) -> str:
    """One line per deployment: the first profile of each mode, with intervals."""
    with bundle.opened(path) as run:
        rows = [row for row in table.rows(table.read(run)) if row.mistake is None]
    deployments: dict[tuple[int, str], dict[str, Row]] = {}
    for row in rows:
        deployments.setdefault((row.size, row.deployment), {}).setdefault(row.mode, row)
    lines = []
    for (size, _), modes in deployments.items():
        first, (in_process, closed, opened) = next(iter(modes.values())), map(modes.get, MODES)
        figures = [marked_cell(row, "p50", True) for row in (in_process, closed)] + [marked_cell(closed, "p99", True)]
        figures += [marked_cell(opened, "p50", True), marked_cell(opened, "p99")]
        # A call that does nothing takes no time that could be told.
        figures = [Cell("< 0.001") if cell.value is not None and cell.value < 0.001 else cell for cell in figures]
        accuracy = Cell("" if first.accuracy is None else f"{percent(first.accuracy)} %")
        lines.append((Cell(str(size)), *deployment_cells(first, False), *figures, accuracy))
    # A mode that the study does not have is no column.
    kept = [at for at in range(len(COLUMNS)) if any(line[at].text for line in lines)]
    shown = tuple(Line(tuple(line[at] for at in kept)) for line in lines)
    return as_markdown(Table("", tuple(COLUMNS[at] for at in kept), shown))[0]


def origin(path: Path) -> str:
    """Where the figures of a bundle come from, and its digest."""
    with bundle.opened(path) as run:
        found = bundle.described(run)
    assert found is not None
    return (
        f"Bundle `{path.relative_to(ROOT)}`: {found.machine}, {found.started[:10]}, medserve {found.version}, "
        f"SHA-256 `{sha256(path.read_bytes()).hexdigest()}`"
    )


KINDS: dict[str, Callable[[Path], str]] = {
    "latency": latency,
    "origin": origin,
    "reference": lambda _: study_file.reference(),
}


if __name__ == "__main__":
    for manual in MANUALS:
        (ROOT / manual).write_text(derived((ROOT / manual).read_text()))
