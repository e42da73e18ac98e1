"""What several commands share: options, and printing of figures."""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Seconds = Annotated[float, typer.Option(min=0.1, help="Seconds of measuring, after the warm-up.")]
Warmup = Annotated[float, typer.Option(min=0.0, help="Seconds of warm-up, kept in the record and marked.")]
Batch = Annotated[int, typer.Option(min=1, help="Images per request.")]
Seed = Annotated[int, typer.Option(help="Seed of the order of the images, and of arrivals.")]


def print_figures(figures: dict[str, Any], lines: Sequence[str], json: bool) -> None:
    """Print figures as JSON, or lines."""
    print(msgspec.json.encode(figures).decode() if json else "\n".join(lines), flush=True)


def and_more(items: Sequence[str]) -> str:
    """The first of the items, and how many more there are."""
    return items[0] + (f" (and {len(items) - 1} more)" if len(items) > 1 else "")
