"""Implements `medserve explain`: where the time of a prediction goes inside the model."""

import os
import tempfile
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from loadtest.commands.shared import Batch, Json, Options, print_figures, runtime_options
from loadtest.results import layers
from loadtest.results.tabular import Cell, Column, Line, Table, as_markdown, number_cell
from medserve import machine, plugins, stage, store
from medserve.errors import BadInput, CannotRun
from medserve.models import Artifact
from medserve.result import Explained
from medserve.spec import Deployment
from medserve.tables import FORMATS, pick


def explain(
    artifacts: Annotated[list[Path], typer.Argument(metavar="ARTIFACT...", help="Folders of exported models.")],
    runtime: Annotated[
        list[str] | None, typer.Option(help="Runtime; repeatable.", show_default="each format's own")
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="Threads of the runtime; 0: all usable cores.")] = 1,
    batch: Batch = 1,
    options: Options = "{}",
    out: Annotated[Path | None, typer.Option(help="File for what was found of one artifact.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Operators shown of each.")] = 12,
    json: Json = False,
) -> None:
    """Show where the time of a prediction goes inside the model, by the runtime's own profiler.

    Exit code 1 when a runtime has none. Example: medserve explain artifacts/cells.onnx artifacts/cells.torchscript
    """
    asked = []
    for artifact in artifacts:
        form = store.read_json(artifact / "artifact.json", Artifact).format
        own = pick(FORMATS, "format", form).runtime
        readers = [name for name in runtime or [own] if form in plugins.literals("serve.runtimes", name)["READS"]]
        if not readers:
            raise BadInput(f"{artifact}: none of the runtimes {', '.join(runtime or [])} reads {form}")
        asked += [(artifact, name) for name in readers]
    if out is not None and len(asked) > 1:
        raise BadInput("--out is for one artifact and one runtime")
    if len(asked) == 1:
        found, failed = [_explain(*asked[0], threads, batch, options)], list[str]()
    else:
        found, failed = _explain_each(asked, ["--threads", str(threads), "--batch", str(batch), "--options", options])
    if out is not None:
        store.write_json(out, found[0])
    failed += [f"{one.deployment}: {one.reason}" for one in found if one.reason]
    if json:
        print_figures({"explained": msgspec.to_builtins(found)}, [], json)
    else:
        for table in _explained(found, top):
            print("\n".join(as_markdown(table)), end="\n\n")
    if failed:
        raise CannotRun("; ".join(failed))


def _explain(artifact: Path, runtime: str, threads: int, batch: int, options: str) -> Explained:
    # Libraries size their thread pools when they are imported.
    os.environ.update(machine.thread_environment(threads))
    from loadtest.measure import explanation

    chosen = runtime_options(options)
    deployment = Deployment(
        artifact=artifact.name, runtime=runtime, threads=threads, batch_sizes=(batch,), options=chosen
    )
    machine.pin(machine.divide_cpus(threads)[0])
    return explanation.explain(artifact, deployment, batch)


def _explain_each(asked: list[tuple[Path, str]], words: list[str]) -> tuple[list[Explained], list[str]]:
    """Each in a process of its own: two frameworks never share one. Returns those found, and why others were not."""
    found: list[Explained] = []
    failed = []
    with tempfile.TemporaryDirectory() as scratch:
        for artifact, runtime in asked:
            given = ["-m", "loadtest", "explain", str(artifact), "--runtime", runtime, *words, "--json"]
            code, printed, reason = stage.run(given, Path(scratch) / "log")
            if code:
                failed.append(f"{artifact.name} by {runtime}: {reason}")
            else:
                found += msgspec.json.decode(printed, type=dict[str, list[Explained]])["explained"]
    return found, failed


def _explained(found: list[Explained], top: int) -> list[Table]:
    columns = (
        Column("deployment", numeric=False), Column("latency", "ms"), Column("profiled", "ms"),
        Column("in operators", "% of profiled"), Column("operators"),
    )  # fmt: skip
    lines = [
        Line((
            Cell(one.deployment), number_cell(one.plain_ms), number_cell(one.profiled_ms),
            number_cell(100 * one.attributed), Cell(str(len(one.operators))),
        ))
        for one in found
    ]  # fmt: skip
    tables = [Table("", columns, tuple(lines)), *_beside(found)]
    heads = (
        Column("operator", numeric=False),
        Column("kind", numeric=False),
        Column("ms"),
        Column("share", "%"),
        Column("calls"),
    )
    for one in found:
        rows = [
            Line((
                Cell(operator.name), Cell(operator.kind), number_cell(operator.ms),
                number_cell(100 * operator.ms / one.profiled_ms), number_cell(operator.calls),
            ))
            for operator in one.operators[:top]
        ]  # fmt: skip
        tables.append(Table(one.deployment, heads, tuple(rows)))
    return tables


def _beside(found: list[Explained]) -> list[Table]:
    """The kinds of layers of each deployment of a checkpoint beside those of the first, where there are several."""
    tables = []
    for checkpoint in dict.fromkeys(one.checkpoint for one in found):
        known = [one for one in found if one.checkpoint == checkpoint and one.operators]
        parts = [layers.parts(one) for one in known]
        columns = [Column("layers", numeric=False)]
        for place, one in enumerate(known):
            columns.append(Column(one.deployment, "ms"))
            columns += [Column("less the first", "ms")] * bool(place)
        lines = []
        for name in (*layers.LAYERS, layers.NO_OPERATOR):
            cells = [Cell(name)]
            for place, part in enumerate(parts):
                cells.append(number_cell(part[name]))
                cells += [number_cell(part[name] - parts[0][name])] * bool(place)
            lines.append(Line(tuple(cells)))
        tables += [Table("Layers", tuple(columns), tuple(lines))] if len(known) > 1 else []
    return tables
