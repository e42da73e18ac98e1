"""`python -m loadtest COMMAND`: a command is a file of `loadtest.commands`; only the chosen one is imported."""

import sys
from importlib import import_module

import typer

from medserve import errors

COMMANDS = {
    "launch": "launch",
    "load": "load",
    "selftest": "selftest",
    "time": "timing",
    "results": "results",
    "report": "report",
    "compare": "compare",
    "verify": "verify",
}
"""The module of `loadtest.commands` that implements each command, in a function `command`."""

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
        app.command(name)(import_module(f"loadtest.commands.{COMMANDS[name]}").command)
    errors.main(app)


if __name__ == "__main__":
    main()
