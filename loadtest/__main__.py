"""`python -m loadtest COMMAND`: a command is a function in `loadtest.commands`; only its module is imported."""

import sys
from importlib import import_module

import typer

from medserve import errors

COMMANDS = {
    **dict.fromkeys(("launch", "selftest", "time", "tune", "peaks"), "measure"),
    "explain": "explain",
    "load": "load",
    **dict.fromkeys(("results", "report", "compare", "verify", "bundle"), "runs"),
}
"""The module of `loadtest.commands` with the function of each command."""

app = typer.Typer(
    help="Measure latency: over HTTP with Locust, or in process.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _group() -> None:
    # With a callback, Typer takes a single registered command for one of several, and wants its name.
    pass


def main() -> None:
    """Register the command that the command line names, or all of them for the list, and run it."""
    asked = sys.argv[1:2]
    for name in asked if asked and asked[0] in COMMANDS else COMMANDS:
        app.command(name)(getattr(import_module(f"loadtest.commands.{COMMANDS[name]}"), name))
    errors.main(lambda: app(prog_name="medserve"))


if __name__ == "__main__":
    main()
