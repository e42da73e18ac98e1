"""Reads a run for the report: its rows, the manifests that say where they come from, and which rows belong together."""

from collections.abc import Iterable
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Literal

import msgspec

from loadtest.analysis.breakdown import Term, over_launches
from loadtest.analysis.distribution import Curve
from loadtest.analysis.limit import Limit
from loadtest.report import wording
from loadtest.report.wording import Labels
from loadtest.results import agreement, table
from loadtest.results.agreement import Agreement
from loadtest.results.pairs import Comparisons
from loadtest.results.row import PERCENTILES, Row
from loadtest.results.table import Run
from medserve import store
from medserve.errors import BadInput
from medserve.jobs import Failure, Tuned
from medserve.matrix import plan
from medserve.models import Artifact, Checkpoint
from medserve.result import Explained, Result, SelfTest
from medserve.run_folder import CHANGES, Change, Changes
from medserve.spec import LoadProfile
from medserve.study import Plan, Study, Training
from medserve.tables import dataset_name

Group = dict[str, Row]
"""The rows of one deployment by profile."""
NETWORK = ("dataset", "architecture", "size")
"""The fields of a row within which deployments compete."""
Mode = Literal["in-process", "closed-loop", "open-loop"]


class Facts(msgspec.Struct, frozen=True):
    """A run in memory; `measured` are its records, reduced.

    `failures` maps (stage, name) to a reason; `results` are those that can be read, in time. `rows` are those without a
    timing mistake, `mistaken` the others. `medians` are milliseconds by cell and launch (means where that is the
    mistake), `percentiles` the same at p50, p90 and p99; `curves` are the distributions of the launches of each cell;
    `breakdowns` are of the cells with single images and one user over HTTP. `comparisons` judges pairs of rows by
    `medians`, `labels` names deployments by what differs among `rows`. `main` are the profiles of the main tables and
    charts: without pauses, and with the fewest users of a ladder. `changes` are those of the study during the run,
    `tuned` what was found for each tuned deployment, `explained` what was found inside a deployment's model by its name
    and the images per call, `limits` the least time of each row, by cell.
    """

    study: Study
    plan: Plan
    measured: Run
    rows: list[Row]
    mistaken: list[Row]
    medians: dict[str, dict[int, float]]
    percentiles: dict[str, dict[str, dict[int, float]]]
    curves: dict[str, list[Curve]]
    profiles: dict[str, LoadProfile]
    checkpoints: dict[str, Checkpoint]
    artifacts: dict[str, Artifact]
    failures: dict[tuple[str, str], str]
    results: list[Result]
    agreements: list[Agreement]
    selftest: SelfTest | None
    breakdowns: dict[str, tuple[Term, ...]]
    comparisons: Comparisons
    labels: Labels
    main: dict[str, LoadProfile]
    changes: tuple[Change, ...] = ()
    tuned: tuple[Tuned, ...] = ()
    explained: dict[tuple[str, int], Explained] = msgspec.field(default_factory=dict)
    limits: dict[str, Limit] = msgspec.field(default_factory=dict)

    @property
    def unofficial(self) -> bool:
        """Whether any data was not the official file."""
        return any(checkpoint.unofficial for checkpoint in self.checkpoints.values())

    @property
    def unequal(self) -> bool:
        """Whether networks were trained for different numbers of epochs."""
        return len({training.recipe.epochs for training in self.plan.trainings}) > 1

    @property
    def sizes(self) -> list[int]:
        """The sides of the images in pixels, of networks that are trained here and of others."""
        return list(dict.fromkeys((*self.study.sizes, *(model.size for model in self.study.models))))

    @property
    def datasets(self) -> list[str]:
        """The names of the data sets, images of one's own among them."""
        return list(
            dict.fromkeys((*map(dataset_name, self.study.datasets), *(model.dataset for model in self.study.models)))
        )

    @property
    def networks(self) -> list[str]:
        """The names of the networks."""
        return list(dict.fromkeys((*self.study.architectures, *(model.name for model in self.study.models))))

    def why_not(self, training: Training, export: str = "") -> str | None:
        """Why there is no checkpoint, or no export of it; null where nothing failed."""
        data = f"{training.dataset}-{training.size}"
        reasons = (self.failures.get(key) for key in (("export", export), ("train", training.name), ("data", data)))
        return next(filter(None, reasons), None)

    def blocks(self, rows: list[Row]) -> dict[int, dict[int, float]]:
        """Medians in milliseconds by block, and in it by the size in pixels, of the rows of one deployment."""
        found: dict[int, dict[int, float]] = {}
        for row in rows:
            for block, median in self.medians[row.cell].items():
                found.setdefault(block, {})[row.size] = median
        return found

    def single(self, *modes: Mode) -> list[str]:
        """The first profile of each mode, if there is one, that sends single images with one user."""
        known = [profile for profile in self.profiles.values() if is_single(profile)]
        found = (next((profile.name for profile in known if profile.mode == mode), None) for mode in modes)
        return [name for name in found if name is not None]

    def profile(self, row: Row) -> str:
        """How a row was measured, in a few words."""
        return wording.profile(self.profiles[row.profile])

    def named(self, row: Row) -> str:
        """A deployment with its image size."""
        return f"{self.labels.full(row)}, {row.size} px"

    def place(self, network: Row | Checkpoint, *, size: bool = True) -> str:
        """Data set and architecture where the study has several, and the image size."""
        words = self.shown_dataset(network.dataset)
        words += [network.architecture] * (len(self.networks) > 1)
        return ", ".join(words + [f"{network.size} px"] * size)

    def title(self, row: Row, *, size: bool = True) -> str:
        """How and where a row was measured: the title of a panel."""
        return ", ".join(filter(None, (self.profile(row), self.place(row, size=size))))

    def shown_dataset(self, name: str) -> list[str]:
        """The title of a data set, where there are several."""
        return [wording.dataset(name)] if len(self.datasets) > 1 else []


def read(run: Path) -> Facts:
    """All that the report needs. Raises BadInput when `run` is no run or a manifest of it cannot be read."""
    measured = table.read(run, with_breakdown=lambda profile: profile.mode != "in-process" and is_single(profile))
    every = table.rows(measured)
    rows = [row for row in every if row.mistake is None]
    study, medians = measured.study, measured.central_latencies()
    matrix, summaries = plan(study), {cell.cell.name: list(cell.summaries.values()) for cell in measured.cells}
    results = _results(run, study, matrix)
    # A folder may have been cleared of its artifacts; each result still carries its artifact's manifest.
    artifacts = {result.artifact.name: result.artifact for result in results if result.artifact}
    for export in matrix.exports:
        if (path := run / "artifacts" / export.name / "artifact.json").is_file():
            artifacts[export.name] = store.read_json(path, Artifact)
    checkpoints = {artifact.checkpoint.name: artifact.checkpoint for artifact in artifacts.values()}
    for training in matrix.trainings:
        if (path := run / "checkpoints" / training.name / "checkpoint.json").is_file():
            checkpoints[training.name] = store.read_json(path, Checkpoint)
    profiles = {profile.name: profile for deployed in matrix.deployed for profile in deployed.profiles}
    path = run / CHANGES
    changes = store.read_json(path, Changes) if path.is_file() else Changes(changes=())
    failures = [store.read_json(path, Failure) for path in sorted((run / "failures").glob("*.json"))]
    return Facts(
        study=study,
        plan=matrix,
        measured=measured,
        rows=rows,
        mistaken=[row for row in every if row.mistake is not None],
        medians=medians,
        percentiles={name: measured.percentiles(share) for name, share in PERCENTILES.items()},
        curves={name: [launch.curve for launch in launches] for name, launches in summaries.items()},
        profiles=profiles,
        breakdowns={
            name: over_launches([launch.breakdown for launch in launches]) for name, launches in summaries.items()
        },
        checkpoints=checkpoints,
        artifacts=artifacts,
        failures={(failure.stage, failure.name): failure.reason for failure in failures},
        results=results,
        agreements=agreement.agreements(run, artifacts.values()),
        selftest=measured.selftest,
        comparisons=Comparisons(every, medians.__getitem__),
        labels=Labels(rows),
        main=_main(profiles),
        changes=changes.changes,
        tuned=tuple(store.read_json(path, Tuned) for path in sorted((run / "tuned").glob("*.json"))),
        explained={
            (deployed.deployment.name, batch): store.read_json(path, Explained)
            for deployed in matrix.deployed
            for batch in deployed.batches_in_process
            if (path := run / "explained" / f"{deployed.deployment.name}.{batch}.json").is_file()
        },
        limits={
            cell.name: least
            for deployed in matrix.deployed
            for cell in deployed.cells
            if (
                least := table.limit_of(
                    measured, deployed, cell.profile, checkpoints.get(deployed.export.training.name)
                )
            )
        },
    )


def grouped(rows: Iterable[Row], *keys: str) -> dict[tuple[object, ...], list[Row]]:
    """Rows by the values of some keys, in order of first appearance."""
    found: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(getattr(row, key) for key in keys), []).append(row)
    return found


def network(row: Row) -> tuple[object, ...]:
    """What deployments compete on: data set, architecture and image size."""
    return row.dataset, row.architecture, row.size


def by_deployment(rows: Iterable[Row]) -> list[Group]:
    """The rows of each deployment by profile."""
    return [{row.profile: row for row in group} for group in grouped(rows, "deployment").values()]


def is_single(profile: LoadProfile) -> bool:
    """Whether single images are sent by one user or schedule, without pauses and without a timing mistake."""
    return profile.batch == 1 and profile.users == 1 and not profile.gap_seconds and profile.mistake is None


def _main(profiles: dict[str, LoadProfile]) -> dict[str, LoadProfile]:
    busy = [known for known in profiles.values() if not known.gap_seconds and known.mistake is None]
    fewest: dict[tuple[str, int], int] = {}
    for known in busy:
        key = (known.mode, known.batch)
        fewest[key] = min(known.users, fewest.get(key, known.users))
    return {known.name: known for known in busy if known.users == fewest[known.mode, known.batch]}


def _results(run: Path, study: Study, matrix: Plan) -> list[Result]:
    found = []
    names = [cell.name for deployed in matrix.deployed for cell in deployed.cells]
    for name, index in product(names, range(study.launches)):
        with suppress(BadInput):  # its row has the reason
            found.append(store.read_json(run / "results" / name / str(index) / "result.json", Result))
    return sorted(found, key=lambda result: result.started)
