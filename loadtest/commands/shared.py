"""What several commands share: options, and printing of figures."""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import typer

from medserve.errors import BadInput

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Seconds = Annotated[float, typer.Option(min=0.1, help="Seconds of measuring, after the warm-up.")]
Warmup = Annotated[float, typer.Option(min=0.0, help="Seconds of warm-up, kept in the record and marked.")]
Batch = Annotated[int, typer.Option(min=1, help="Images per request.")]
Options = Annotated[str, typer.Option(metavar="JSON", help="Options of the runtime as one JSON object.")]
Seed = Annotated[int, typer.Option(help="Seed of the order of the images, and of arrivals.")]


def runtime_options(text: str) -> dict[str, Any]:
    """What a user gives as `Options`. Raises BadInput if it is no JSON object."""
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise BadInput(f"--options is no JSON object: {error}") from None


def print_figures(figures: dict[str, Any], lines: Sequence[str], json: bool) -> None:
    """Print figures as JSON, or lines."""
    print(msgspec.json.encode(figures).decode() if json else "\n".join(lines), flush=True)


def and_more(items: Sequence[str]) -> str:
    """The first of the items, and how many more there are."""
    return items[0] + (f" (and {len(items) - 1} more)" if len(items) > 1 else "")
