"""Puts the report together and writes it: report.html, report.md, figures/ and tables/, all from the same data."""

import shlex
from collections.abc import Iterator
from pathlib import Path

from loadtest.analysis import rendering
from loadtest.analysis.verify import PUBLISHED, SUMS, seal
from loadtest.report import (
    answer,
    charts,
    choices,
    claims,
    costs,
    deployments,
    distributions,
    facts,
    front,
    glossary,
    ledgers,
    load,
    markdown,
    proofs,
    rates,
    resolution,
    ruler,
    steadiness,
    tables,
    tabular,
    templating,
    training,
    validity,
    wording,
)
from loadtest.report.facts import Facts
from loadtest.report.model import Commands, Figure, Page, Section, Table, Terms
from medserve import store, study
from medserve.errors import BadInput
from medserve.tables import DATASETS


def write(run: Path, out: Path | None = None) -> list[Path]:
    """Write the report of a run and return the files, the page first. Raises BadInput when `run` is no run.

    A write that fails leaves the report that was there. From the first new file on until all are there and have their
    digests, there is no SHA256SUMS, and `medserve verify` says that nothing was published.
    """
    written = files(run, out)
    publish(run, written)
    return list(written)


def files(run: Path, out: Path | None = None) -> dict[Path, bytes]:
    """What the report of a run consists of, by path, the page first. Raises BadInput when `run` is no run."""
    out = out or run / "report.html"
    if out.suffix != ".html":
        raise BadInput(f"{out}: the report is a page; give --out a name that ends in .html")
    found = facts.read(run)
    page = compose(found, run.resolve().name)
    written = {out: html(page).encode(), out.with_suffix(".md"): markdown.write(page).encode()}
    written[run / PUBLISHED] = rendering.render([*found.rows, *found.trapped], "json").encode()
    return written | {out.parent / name: content for name, content in _beside(page)}


def publish(run: Path, written: dict[Path, bytes]) -> None:
    """Write the files of a report, by path, and SHA256SUMS of the whole run."""
    with store.new_files(written):
        (run / SUMS).unlink(missing_ok=True)
    seal(run)


def compose(found: Facts, folder: str) -> Page:
    """The report as data. `folder` is what the commands call the run."""
    spent = ledgers.tables(found)
    sections = [
        _section("choose", "What to choose", choices.table(found), front.table(found)),
        Section(
            "deployments",
            "Deployments",
            tuple(deployments.tables(found)),
            "Latency in milliseconds, 95 % intervals in brackets; a heading sorts its column.",
        ),
        _section("formats", "Native beside ONNX", tables.ratios(found)),
        _section(
            "resolution",
            "Resolution",
            *resolution.responses(found),
            resolution.crossovers(found),
            intro=resolution.INTRO,
        ),
        _section("load", "Under load", load.rulers(found), load.ladder(found), load.idle(found)),
        _section("time", "Where the time goes", *spent, tables.overheads(found), intro=ledgers.INTRO if spent else ""),
        _section("costs", "What it costs", costs.table(found), training.table(found), training.seeds(found)),
        _section("claims", "Published claims", *claims.tables(found), intro=claims.INTRO),
        _section(
            "charts",
            "Charts",
            charts.latency(found),
            charts.latency_at_one_size(found),
            distributions.figure(found),
            charts.ratios(found),
            front.figure(found),
            rates.schedules(found),
            rates.users(found),
            ledgers.figure(found),
            charts.overheads(found),
            training.curves(found),
            training.efficiency(found),
        ),
        _section(
            "validity",
            "Validity",
            ruler.checks(found),
            ruler.roofline(found),
            proofs.certificates(found),
            proofs.agreements(found),
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


def html(page: Page) -> str:
    """The page in one file that loads nothing."""
    return templating.render("report.html.jinja", page=page, kind=lambda block: type(block).__name__.lower())


def _beside(page: Page) -> Iterator[tuple[str, bytes]]:
    """Every figure and every table as files of their own: paths beside the page, and contents."""
    found = {section.called(block): block for section in page.sections for block in section.blocks}
    for name, block in [("answer", page.podium), *found.items()]:
        match block:
            case Figure():
                yield f"figures/{name}.svg", block.svg.encode()
                yield f"figures/{name}.png", block.png
            case Table():
                for ending, text in tabular.forms(block):
                    yield f"tables/{name}.{ending}", text.encode()


def _section(name: str, title: str, *blocks: Table | Figure | Terms | Commands | None, intro: str = "") -> Section:
    return Section(name, title, tuple(block for block in blocks if block is not None), intro)


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
