"""Implements `medserve report`."""

from pathlib import Path
from typing import Annotated

import typer

from loadtest.report.page import write


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    out: Annotated[Path | None, typer.Option(help="The page, .html.", show_default="RUN/report.html")] = None,
) -> None:
    """Write a run's report: a page that needs no network, the same as Markdown, figures/ and tables/.

    Example: medserve report runs/quick
    """
    print(write(run, out)[0].resolve())
