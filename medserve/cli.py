"""The command line. It starts processes; `medserve train ...` and its kin hand their words to the stage as they are."""

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from medserve import __version__, doctor, errors, forecast, machine, matrix, plugins, run_folder, runner, study_file
from medserve.errors import BadInput
from medserve.job_runner import Listener
from medserve.progress import duration
from medserve.spec import Device, Noun
from medserve.study import Study, check_shard
from medserve.tables import ARCHITECTURES, DATASETS, FORMATS, PROFILES
from medserve.terminal import NO_GPU, Screen, print_plan

app = typer.Typer(
    help="Inference-serving latency of medical image classifiers: train, export, serve, load-test, compare.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

STAGES = {
    "data": ("train", "data", "List, fetch and unpack data sets."),
    "train": ("train", "train", "Train one checkpoint."),
    "parity": ("train", "parity", "Prove that a checkpoint is one function in every framework."),
    "export": ("export", "", "Export a checkpoint and certify the artifact."),
    "adopt": ("export.adopt", "", "Make a certified artifact of a model that was made elsewhere."),
    "serve": ("serve", "", "Serve an artifact over HTTP."),
    "load": ("loadtest", "load", "Load-test any server of the Open Inference Protocol v2."),
    "selftest": ("loadtest", "selftest", "Test the load generator on known answers."),
    "time": ("loadtest", "time", "Time an artifact in process."),
    "tune": ("loadtest", "tune", "Find the fastest options of a runtime for an artifact."),
    "peaks": ("loadtest", "peaks", "Measure what this machine computes and reads at most."),
    "explain": ("loadtest", "explain", "Show where the time of a prediction goes inside the model."),
    "results": ("loadtest", "results", "Print the results of a run."),
    "compare": ("loadtest", "compare", "Compare with a rule: native with ONNX, frameworks, or two runs."),
    "verify": ("loadtest", "verify", "Derive every published number of a run again."),
    "bundle": ("loadtest", "bundle", "Write a run into one file that can be handed on, cited and verified."),
    "report": ("loadtest", "report", "Write a run's report: one page, figures, Markdown."),
}


@app.command()
def run(
    name: Annotated[
        str, typer.Argument(metavar="STUDY", help="A study's name, a TOML file, or the folder of a run.")
    ] = "quick",
    out: Annotated[Path | None, typer.Option(help="Folder of the run.", show_default="runs/STUDY")] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Measure also where the self-test of the load generator fails.")
    ] = False,
    more_launches: Annotated[
        int, typer.Option(min=0, help="Launches of each deployment beyond those that the study or its run has.")
    ] = 0,
    device: Annotated[
        Device | None, typer.Option(help="Where predictions run.", show_default="as the study says")
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only this part of so many, as 2/5: one a network and data set.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Have it done by the workers of a Dask scheduler.")
    ] = None,
    shards: Annotated[
        int, typer.Option(min=1, help="With --scheduler: parts that may be measured on different machines.")
    ] = 1,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be done, and about how long it takes.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON line a step instead of text.")] = False,
) -> None:
    """Run a study, or go on where it was stopped; ends with the answer, short tables and a report.

    The study may have changed since, if it has more launches, more time or more cells. Exit code 1 when a cell failed:
    it is in the table with its reason. Example: medserve run quick
    """
    study = study_file.read(name)
    folder = out or study_file.folder_of(name) or Path("runs") / study.name
    study = msgspec.structs.replace(study, device=device or study.device)
    if shard is not None:
        check_shard(shard)
        study = msgspec.structs.replace(study, shard=shard)
        matrix.plan(study)
    asked, study = study.launches, run_folder.with_launches(study, folder, more_launches)
    if plan:
        run_folder.check(study, folder)
        print_plan(study, folder, json)
        return

    def expected() -> str:
        left = duration(forecast.forecast(study, folder).seconds)
        kept = f"; its {study.launches} launches are kept" * (study.launches > asked + more_launches)
        return f"{study.title}: about {left} on this machine (--plan says of what){kept}"

    if study.device == "cuda" and scheduler is None and not machine.gpus():
        print(f"{NO_GPU}; --device cpu measures on the processor", file=sys.stderr)
    if study.machines and scheduler is None:
        print(f"measured on this machine alone; --scheduler measures on {', '.join(study.machines)}", file=sys.stderr)
    listen = errors.print_event if json else Screen(expected).show
    if anyway and scheduler is not None:
        raise BadInput("--anyway is for this machine; on a worker's, mend what fails the self-test")
    if shards > 1 and scheduler is None:
        raise BadInput("--shards needs a --scheduler; without one --shard 1/5 does the first fifth here")
    try:
        if scheduler is None:
            runs, failed = [folder], runner.run(study, folder, listen, anyway)
        else:
            runs, failed = _run_there(study, folder, listen, scheduler, shards)
    except KeyboardInterrupt:
        options = {"--out": str(out) if out else None, "--device": device, "--shard": shard, "--scheduler": scheduler}
        options["--shards"] = str(shards) if shards > 1 else None
        given = [word for option, value in options.items() if value is not None for word in (option, value)]
        words = shlex.join(["medserve", "run", name, *given])
        raise KeyboardInterrupt(f"interrupted; what is measured is kept: {words} goes on") from None
    if json:
        found = {"run": str(folder.resolve()), "runs": [str(run.resolve()) for run in runs], "failed": failed}
        errors.print_event({"state": "finished", **found})
    else:
        can_draw = all(find_spec(name) for name in ("altair", "vl_convert"))
        for run in runs:
            _finish("results", str(run), "--format", "table" if can_draw else "markdown")
            if can_draw:
                _finish("report", str(run), stdout=subprocess.DEVNULL)
                print(f"\nReport:  {run.resolve()}/report.html", end="")
            else:
                print("\nThe report needs altair and vl-convert-python: write it where they are, of `medserve bundle`")
            print(f"\nResults: {run.resolve()}")
        if len(runs) > 1 and can_draw:
            _finish("report", *map(str, runs), "--out", str(folder / "comparison" / "report.html"))
    if failed:
        raise errors.CannotRun(
            f"{failed} job{'s' * (failed > 1)} or cells failed; the reasons stand in the table above"
        )


def _run_there(study: Study, folder: Path, listen: Listener, scheduler: str, shards: int) -> tuple[list[Path], int]:
    from medserve import remote_runner

    engine = _dask().Cluster(scheduler)
    try:
        return remote_runner.run(study, folder, listen, engine, shards)
    finally:
        engine.close()


def _dask() -> ModuleType:
    try:
        from medserve import cluster
    except ModuleNotFoundError as error:
        raise BadInput(f"{error.name} is not installed; pip install 'medserve[cluster]'") from None
    return cluster


@app.command()
def scheduler(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="Where it listens.")] = "127.0.0.1:8786",
) -> None:
    """Hand the units of studies to workers on other machines, until it is interrupted.

    Example: medserve scheduler
    """
    _dask().schedule(address)


@app.command()
def worker(
    scheduler: Annotated[str, typer.Argument(metavar="ADDRESS", help="Address of a Dask scheduler.")],
    kind: Annotated[str, typer.Option(help="Kind of this machine, as a study's 'machines' names it.")] = "any",
    folder: Annotated[
        Path, typer.Option(help="Where studies are worked on.", show_default="~/.cache/medserve/worker")
    ] = Path("~/.cache/medserve/worker"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Its own, for a tunnel.", show_default="any")] = 0,
) -> None:
    """Work for the studies that are sent to a scheduler, until it is interrupted. One a machine is enough.

    Nothing of it runs beside a measurement but a heartbeat. Example: medserve worker 127.0.0.1:8786 --kind large
    """
    _dask().keep_working(scheduler, kind, folder.expanduser().resolve(), port)


study_app = typer.Typer(help="Write a study of your own, and check it.", no_args_is_help=True)
app.add_typer(study_app, name="study")


@study_app.command("new")
def study_new() -> None:
    """Print a commented study with every field and its default.

    Example: medserve study new > mine.toml
    """
    print(study_file.template(), end="")


@study_app.command("check")
def study_check(
    name: Annotated[str, typer.Argument(metavar="STUDY", help="A study's name, or a TOML file.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Name everything that is wrong in a study; else say what it asks for, what is left out, and how long it takes.

    Example: medserve study check mine.toml
    """
    study = study_file.read(name)
    folder = study_file.folder_of(name) or Path("runs") / study.name
    try:
        run_folder.check(study, folder)
    except BadInput as error:
        print(f"medserve run would refuse it: {error}", file=sys.stderr)
        folder = folder.with_name(f"{folder.name}-new")
    print_plan(run_folder.with_launches(study, folder, 0), folder, json)


@app.command("list")
def list_(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what there is: data sets, architectures, frameworks, formats, runtimes, profiles, studies.

    It imports nothing and says nothing of this machine.
    """
    known: dict[str, Mapping[str, object]] = {
        "studies": {name: study_file.read(name).title for name in study_file.names()},
        "datasets": _rows(DATASETS),
        "architectures": _rows(ARCHITECTURES),
        "frameworks": {name: plugins.literals("export.frameworks", name) for name in plugins.names("train.frameworks")},
        "formats": _rows(FORMATS),
        "runtimes": {name: plugins.literals("serve.runtimes", name) for name in plugins.names("serve.runtimes")},
        "profiles": _rows(PROFILES),
    }
    if json:
        print(msgspec.json.format(msgspec.json.encode(known), indent=1).decode())
        return
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for kind, rows in known.items():
        table.add_row(kind, ", ".join(rows))
    Console().print(table)


@app.command("doctor")
def doctor_(
    out: Annotated[Path, typer.Option(help="Folder where runs will lie.")] = Path("runs"),
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Look for what would spoil a measurement on this machine, and say how to mend it.

    Exit code 1 when something is bad, 0 when it is merely not as good as it could be. Example: medserve doctor
    """
    findings = doctor.examine(out)
    if json:
        print(msgspec.json.format(msgspec.json.encode(findings), indent=1).decode())
    else:
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for one in findings:
            sign, style = {"good": ("ok", "green"), "warn": ("!", "yellow"), "bad": ("BAD", "red")}[one.level]
            table.add_row(sign, one.what, one.seen + (f"\n-> {one.mend}" if one.mend else ""), style=style)
        Console().print(table)
    if bad := [one.what for one in findings if one.level == "bad"]:
        raise errors.CannotRun(f"a measurement here would not be sound: {', '.join(bad)}")


def _finish(command: str, *words: str, stdout: int | None = None) -> None:
    done = subprocess.run([sys.executable, "-m", "loadtest", command, *words], check=False, stdout=stdout)
    if done.returncode:
        raise errors.CannotRun(f"`medserve {command} {words[0]}` failed, for the reason above; run it again by hand")


def _add(name: str, stage: str, command: str, text: str) -> None:
    def forward(context: typer.Context) -> None:
        """Become the stage: signals, exit code and output are its own."""
        words = [sys.executable, "-m", stage, *filter(None, [command]), *context.args]
        os.execv(sys.executable, words)  # noqa: S606 (our own stage)

    settings = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    app.command(name, help=text, context_settings=settings)(forward)


for _name, (_stage, _command, _text) in STAGES.items():
    _add(_name, _stage, _command, _text)


def _rows(table: Mapping[str, Noun]) -> dict[str, object]:
    return {name: msgspec.to_builtins(row) for name, row in table.items()}


@app.callback(invoke_without_command=True)
def _main(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        print(f"medserve {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """Entry point of the `medserve` command."""
    errors.main(lambda: app(prog_name="medserve"))


if __name__ == "__main__":
    main()
