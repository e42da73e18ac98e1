"""Composes the report and writes it: report.html, report.md, figures/ and tables/, all from the same data."""

import shlex
from collections.abc import Iterator
from pathlib import Path

from loadtest.report import document, facts, wording
from loadtest.report.document import Block, Commands, Figure, Page, Section, Terms
from loadtest.report.facts import Facts
from loadtest.report.sections import (
    answer,
    breakdown,
    certificates,
    choose,
    claims,
    costs,
    deployments,
    environment,
    formats,
    inside,
    load,
    measurement,
    resolution,
)
from loadtest.report.wording import SECTIONS
from loadtest.results import tabular, writers
from loadtest.results.bundle import PUBLISHED, SUMS
from loadtest.results.tabular import Table
from loadtest.results.verify import seal
from medserve import store, study_file
from medserve.adopted import adoption
from medserve.errors import BadInput
from medserve.glossary import GLOSSARY
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
    written = render(compose(found, run.resolve().name), out)
    written[run / PUBLISHED] = writers.render([*found.rows, *found.mistaken], "json").encode()
    return written


def render(page: Page, out: Path) -> dict[Path, bytes]:
    """The page `out` and what lies beside it, by path: the same as Markdown, each figure and each table."""
    written = {out: document.html(page).encode(), out.with_suffix(".md"): document.markdown(page).encode()}
    return written | {out.parent / name: content for name, content in _beside(page)}


def write_beside(run: Path, out: Path) -> list[Path]:
    """Write the report of a run that stays as it is, as that of a bundle, and return the files, the page first."""
    written = {path: content for path, content in files(run, out).items() if path != run / PUBLISHED}
    with store.new_files(written):
        pass
    return list(written)


def publish(run: Path, written: dict[Path, bytes]) -> None:
    """Write the files of a report, by path, and SHA256SUMS of the whole run."""
    with store.new_files(written):
        (run / SUMS).unlink(missing_ok=True)
    seal(run)


def compose(found: Facts, folder: str) -> Page:
    """The report as data. `folder` is the run's folder in the commands that reproduce it."""
    times = breakdown.tables(found)
    of_sizes, of_one_size = resolution.latency(found), resolution.latency_at_one_size(found)
    sections = [
        section(
            "choose",
            choose.study_objective(found),
            choose.figure(found),
            choose.objectives(found),
            choose.fronts(found),
        ),
        section("deployments", deployments.distributions(found), *deployments.tables(found)),
        section("formats", formats.figure(found), formats.table(found), *formats.others(found)),
        section(
            "resolution", of_one_size if of_sizes else None, *resolution.responses(found), resolution.crossovers(found)
        ),
        section(
            "load",
            load.utilisation(found),
            load.held_up_to(found),
            load.loads(found),
            load.rates(found),
            load.users(found),
            load.definitions(found),
            load.ladder(found),
            load.batches(found),
            load.pauses(found),
        ),
        section(
            "time",
            breakdown.figure(found),
            breakdown.overhead_figure(found),
            *times,
            breakdown.overheads(found),
            introduced=bool(times),
        ),
        section(
            "inside",
            inside.figure(found),
            inside.roofline(found),
            inside.gaps(found),
            inside.table(found),
            inside.multiples(found),
        ),
        section(
            "costs",
            costs.curves(found),
            costs.efficiency(found),
            costs.serving(found),
            costs.training(found),
            costs.seeds(found),
        ),
        section("claims", *claims.tables(found)),
        section(
            "validity",
            measurement.checks(found),
            measurement.roofline(found),
            certificates.certificates(found),
            certificates.agreements(found),
            measurement.steadiness(found),
            environment.machine(found),
            environment.processes(found),
            environment.settings(found),
            environment.launches(found),
            environment.data(found),
            environment.versions(found),
        ),
        section("reproduce", _commands(found, folder)),
        section("meaning", Terms("", tuple(GLOSSARY.items()))),
    ]
    return Page(
        title=found.study.title,
        study=found.study.name,
        facts=_facts(found),
        unofficial=found.unofficial,
        answer=answer.sentences(found),
        picture=of_sizes or of_one_size,
        podium=answer.podium(found),
        cautions=answer.cautions(found),
        sections=tuple(section for section in sections if section.blocks),
    )


def _beside(page: Page) -> Iterator[tuple[str, bytes]]:
    """Every figure and every table as a file of its own: paths beside the page, and contents."""
    found = {section.called(block): block for section in page.sections for block in section.blocks}
    for name, block in [("answer", page.podium), ("picture", page.picture), *found.items()]:
        match block:
            case Figure():
                yield f"figures/{block.name}.svg", block.svg.encode()
                yield f"figures/{block.name}.png", block.png
            case Table():
                for ending, text in tabular.forms(block):
                    yield f"tables/{name}.{ending}", text.encode()


def section(name: str, *blocks: Block | None, introduced: bool = True) -> Section:
    """A section with its words; null blocks are left out."""
    known = SECTIONS[name]
    intro = known.get("intro", "") if introduced else ""
    return Section(name, known["title"], tuple(block for block in blocks if block is not None), intro)


def _facts(found: Facts) -> tuple[str, ...]:
    """The line below the title: when, on what data, on which machine."""
    datasets = found.datasets
    licences = dict.fromkeys(checkpoint.licence for checkpoint in found.checkpoints.values())
    licences = licences or dict.fromkeys(DATASETS[name].licence for name in datasets if name in DATASETS)
    data = ": ".join(filter(None, (", ".join(map(wording.dataset, datasets)), "; ".join(filter(None, licences)))))
    return tuple(filter(None, (environment.when(found), data, environment.where(found))))


def _commands(found: Facts, folder: str) -> Commands:
    ours = found.study.name in study_file.names() and study_file.read(found.study.name) == found.study
    name, folder = shlex.quote(found.study.name if ours else f"{found.study.name}.toml"), shlex.quote(folder)
    adopted = [artifact for artifact in found.artifacts.values() if artifact.adopted]
    return Commands(
        (
            *(shlex.join(adoption(artifact)) for artifact in adopted),
            f"medserve run {name} --out {folder}",
            f"medserve report {folder}",
            f"medserve results {folder} --format csv",
        )
    )
