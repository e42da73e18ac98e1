"""Implements `python -m loadtest launch`, which the study runner starts for each launch."""

from pathlib import Path
from typing import Annotated

import typer

from loadtest.commands.shared import and_more
from loadtest.measure.launch import launch
from medserve import store
from medserve.errors import CannotRun
from medserve.jobs import Launch


def command(
    plan: Annotated[Path, typer.Argument(metavar="LAUNCH.json", help="A launch as the study runner writes it.")],
) -> None:
    """Measure the cells of one launch and write their results.

    Exit code 1 when a cell failed: its result says why. Example: python -m loadtest launch launch.json
    """
    if failed := launch(store.read_json(plan, Launch)):
        raise CannotRun(and_more(failed))
