"""Implements `medserve selftest`."""

import tempfile
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from loadtest.commands.shared import Json, print_figures
from loadtest.selftest.run import as_text, run, why_failed
from medserve.errors import BadInput, CannotRun


def command(
    rate: Annotated[str, typer.Option(help="Requests per second, by Poisson schedule; several with commas.")] = "100",
    seconds: Annotated[float, typer.Option(min=1.0, help="Seconds for each distribution of delays.")] = 3.0,
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions at each rate; the worst one counts.")] = 1,
    size: Annotated[str, typer.Option(help="Sides of the images in pixels, with commas.")] = "28",
    out: Annotated[Path | None, typer.Option(help="Folder for selftest.json and the raw records.")] = None,
    json: Json = False,
) -> None:
    """Test the load generator on known answers: scripted delays, a stall, and the highest rate that it can send.

    Exit code 1 when a check fails. Example: medserve selftest --rate 50,200,500 --seconds 60 --repeats 5
    """
    sizes = [int(number) for number in _numbers("--size", size)]
    rates = _numbers("--rate", rate)
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "selftest" if out is None else out.resolve()
        done = run(sizes, target, rates=rates, seconds=seconds, repeats=repeats)
    print_figures(msgspec.to_builtins(done), [as_text(done)], json)
    if reason := why_failed(done):
        raise CannotRun(reason)


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part]
    except ValueError:
        raise BadInput(f"{option} is {text!r}; expected numbers with commas, as in 50,200") from None
