"""Puts the report together and writes it: report.html, report.md and figures/, all from the same data."""

import shlex
from pathlib import Path

from loadtest.analysis import rendering
from loadtest.analysis.verify import PUBLISHED
from loadtest.report import (
    answer,
    charts,
    claims,
    costs,
    deployments,
    facts,
    glossary,
    ledgers,
    load,
    markdown,
    resolution,
    ruler,
    steadiness,
    tables,
    templating,
    validity,
    wording,
)
from loadtest.report.facts import Facts
from loadtest.report.model import Commands, Figure, Page, Section, Table, Terms
from medserve import store, study
from medserve.errors import BadInput
from medserve.tables import DATASETS


def write(run: Path, out: Path | None = None) -> list[Path]:
    """Write the report of a run and return the files, the page first. Raises BadInput when `run` is no run."""
    out = out or run / "report.html"
    if out.suffix != ".html":
        raise BadInput(f"{out}: the report is a page; give --out a name that ends in .html")
    found = facts.read(run)
    page = compose(found, run.resolve().name)
    written = {out: html(page).encode(), out.with_suffix(".md"): markdown.write(page).encode()}
    written[run / PUBLISHED] = rendering.render(found.rows, "json").encode()
    for figure in figures(page):
        written[out.parent / "figures" / f"{figure.name}.svg"] = figure.svg.encode()
        written[out.parent / "figures" / f"{figure.name}.png"] = figure.png
    for path, content in written.items():
        store.write_bytes(path, content)
    return list(written)


def compose(found: Facts, folder: str) -> Page:
    """The report as data. `folder` is what the commands call the run."""
    training, ratios, overheads = tables.trainings(found), tables.ratios(found), tables.overheads(found)
    drawn = {figure.name: figure for figure in charts.figures(found)}
    sections = [
        Section(
            "deployments",
            "Deployments",
            tuple(deployments.tables(found)),
            "Latency in milliseconds, 95 % intervals in brackets; a heading sorts its column.",
        ),
        _section("formats", "Native beside ONNX", drawn.get("native-onnx"), ratios),
        _section("latency", "Latency", drawn.get("latency"), drawn.get("latency-one-size")),
        Section(
            "resolution",
            "Resolution",
            (*resolution.responses(found), *filter(None, (resolution.crossovers(found),))),
            resolution.INTRO,
        ),
        _section("http", "What HTTP adds", drawn.get("http-overhead"), overheads),
        _section("rulers", "Three rulers", load.rulers(found)),
        Section("time", "Where the time goes", tuple(ledgers.tables(found)), ledgers.INTRO),
        _section("ladder", "The ladder of users", load.ladders(found), load.ladder(found)),
        _section("idle", "One request now and then", load.idle(found)),
        _section("costs", "What it costs", costs.table(found)),
        _section("training", "Training", training),
        Section("claims", "Published claims", tuple(filter(None, (claims.ledger(found),))), claims.INTRO),
        _section("ruler", "The ruler", ruler.checks(found), ruler.roofline(found)),
        _section(
            "validity",
            "Validity",
            validity.certificates(found),
            steadiness.table(found),
            validity.machine(found),
            validity.processes(found),
            validity.launches(found),
            validity.data(found),
            validity.versions(found),
        ),
        _section("reproduce", "How to reproduce", _commands(found, folder)),
        _section("meaning", "What the columns mean", Terms("", glossary.MEANING)),
    ]
    return Page(
        title=found.study.title,
        study=found.study.name,
        facts=_facts(found),
        unofficial=found.unofficial,
        answer=answer.sentences(found),
        podium=answer.podium(found),
        cautions=answer.cautions(found),
        sections=tuple(section for section in sections if section.blocks),
    )


def figures(page: Page) -> list[Figure]:
    """All figures of a page."""
    return [block for section in page.sections for block in section.blocks if isinstance(block, Figure)]


def html(page: Page) -> str:
    """The page in one file that loads nothing."""
    return templating.render("report.html.jinja", page=page, kind=lambda block: type(block).__name__.lower())


def _section(name: str, title: str, *blocks: Table | Figure | Terms | Commands | None) -> Section:
    return Section(name, title, tuple(block for block in blocks if block is not None))


def _facts(found: Facts) -> tuple[str, ...]:
    """The line below the title: when, on what data, on which machine."""
    titles = [wording.dataset(name) for name in found.study.datasets]
    licences = found.licences or [DATASETS[name].licence for name in found.study.datasets if name in DATASETS]
    data = f"{', '.join(titles)}: {'; '.join(licences)}"
    return tuple(filter(None, (validity.when(found), data, validity.where(found))))


def _commands(found: Facts, folder: str) -> Commands:
    ours = found.study.name in study.names() and study.read(found.study.name) == found.study
    name, folder = shlex.quote(found.study.name if ours else f"{found.study.name}.toml"), shlex.quote(folder)
    return Commands(
        (
            f"medserve run {name} --out {folder}",
            f"medserve report {folder}",
            f"medserve results {folder} --format csv",
        )
    )
