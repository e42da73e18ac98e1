"""Implements `medserve verify`."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from loadtest.commands.shared import Json, and_more, print_figures
from loadtest.results.verify import verify
from medserve.errors import CannotRun


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    json: Json = False,
) -> None:
    """Derive every published number of a run again, from its raw samples and their digests.

    Exit code 1 when a number or a file differs. Example: medserve verify runs/quick
    """
    done = verify(run)
    lines = [
        f"{run}: {done.numbers:,} values derived again from {done.files:,} files, {len(done.differences)} differ",
        *(f"not derived again: the test scores of {reason}" for reason in done.underivable),
    ]
    print_figures(msgspec.to_builtins(done), lines, json)
    if done.differences:
        raise CannotRun(and_more(done.differences))
