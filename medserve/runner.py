"""Walks a study: one process a job, everything resumable, every failure a row with its reason.

The folder of a run is its only state. A job that is done has its folder; a job that is not leaves nothing but its log.
"""

import random
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from medserve import machine, run_folder, store
from medserve.errors import CannotRun
from medserve.job_runner import JobRunner, Listener
from medserve.jobs import Launch, Tuned
from medserve.matrix import environments_of, plan
from medserve.preparation import EXPORTS_AT_A_TIME, Preparation
from medserve.result import Result, SelfTest
from medserve.spec import Cell, Deployment, LoadProfile
from medserve.study import Deployed, Plan, Study
from medserve.tables import ROOFLINE

KINDS = ("in-process", "http", "mistake", "cold")
"""Of launches, in the order in which a deployment goes through them."""


def run(study: Study, out: Path, listen: Listener, anyway: bool = False) -> int:
    """Do all that is missing of a study in the folder `out`. Returns the number of failed jobs and cells.

    Raises BadInput when `out` is in use, or holds something else than a run of this study; CannotRun when the self-test
    of the load generator fails, unless it is to be measured `anyway`.
    """
    out = out.resolve()
    run_folder.check(study, out)
    with run_folder.locked(out):
        # Another run may have begun there in the meantime.
        run_folder.check(study, out)
        store.sweep(out, run_folder.FOLDERS)
        run_folder.adopt(study, out)
        return _Run(study, plan(study), out, listen, anyway).walk()


def refuse(study: Study, out: Path, listen: Listener, reason: str) -> None:
    """Give every cell of a study that is not measured in the folder `out` a result that says why."""
    walker = _Run(study, plan(study), out, listen)
    for deployed in plan(study).deployed:
        for cell in deployed.cells:
            for index in range(study.launches):
                walker.close(cell, index, reason)


class _Run:
    def __init__(self, study: Study, matrix: Plan, out: Path, listen: Listener, anyway: bool = False) -> None:
        self._study, self._plan, self._out, self._anyway = study, matrix, out, anyway
        launched = Counter(kind for deployed in matrix.deployed for kind in {_kind(one) for one in deployed.profiles})
        over_http = (one for one in matrix.deployed if any(_kind(profile) == "http" for profile in one.profiles))
        self._computing = [deployed for deployed in matrix.deployed if deployed.computes]
        self._peaks = {one.peaks: one.deployment for one in self._computing}
        self._sizes = list(dict.fromkeys(one.export.training.size for one in over_http))
        self._jobs = JobRunner(
            out,
            study.job_hours,
            {
                "data": len({(training.dataset, training.size) for training in matrix.trainings}),
                "train": len(matrix.trainings),
                "export": len(matrix.exports),
                "environment": len(environments_of(study, matrix)),
                "selftest": int(bool(self._sizes)),
                "tune": sum(deployed.deployment.settings == "tuned" for deployed in matrix.deployed),
                "peaks": len(self._peaks),
                **{kind: study.launches * launched[kind] for kind in KINDS},
                "explain": study.explain * sum(len(one.batches_in_process) for one in self._computing),
            },
            {"export": EXPORTS_AT_A_TIME},
            listen,
        )
        self._made = Preparation(study, out, self._jobs)
        self._selftest: SelfTest | None = None

    def walk(self) -> int:
        self._made.environments()
        for training in self._plan.trainings:
            self._made.train(training)
        self._made.export_all(self._plan.exports)
        for deployed in self._plan.deployed:
            if deployed.deployment.environment is not None:
                self._made.environment(deployed.deployment.environment)
        self._test_load_generator()
        for deployed in self._plan.deployed:
            self._tune(deployed)
        for name, deployment in self._peaks.items():
            self._measure_peaks(name, deployment)
        for index in range(self._study.launches):
            block = list(self._plan.deployed)
            # A fixed order would give each deployment the same place in the machine's drift in every block.
            random.Random(f"{self._study.name} {index}").shuffle(block)  # noqa: S311 (an order, not a secret)
            for deployed in block:
                for kind in KINDS:
                    self._launch(deployed, index, kind)
        for deployed in self._computing if self._study.explain else ():
            for batch in deployed.batches_in_process:
                self._explain(deployed, batch)
        return self._jobs.failed

    def _tune(self, deployed: Deployed) -> None:
        """Find the options of a tuned deployment on launches of its own, once a machine."""
        deployment, artifact = deployed.deployment, self._made.artifact(deployed.export)
        if deployment.settings == "default":
            return
        path = self._tuned(deployment)
        known = path.is_file() and store.read_json(path, Tuned).machine.get("versions")
        if not self._made.is_made(deployed.export) or known == machine.versions():
            self._jobs.skip("tune")
            return
        words = ["-m", "loadtest", "tune", str(artifact), "--out", str(path)]
        words += ["--deployment", msgspec.json.encode(deployment).decode()]
        self._jobs.remember(
            "tune", deployment.name, self._jobs.run("tune", deployment.name, words, by=deployment.runtime)
        )

    def _measure_peaks(self, name: str, deployment: Deployment) -> None:
        """What the machine computes and reads at most, as a deployment uses it, once a folder."""
        path = self._out / "peaks" / f"{name}.json"
        if path.is_file() or not self._has_artifacts():
            self._jobs.skip("peaks")
            return
        words = ["-m", "loadtest", "peaks", "--threads", str(deployment.threads), "--device", deployment.device]
        words += ["--out", str(path)]
        self._jobs.remember("peaks", name, self._jobs.run("peaks", name, words))

    def _explain(self, deployed: Deployed, batch: int) -> None:
        """Where the time of a deployment goes inside the model, with the options that it was measured with."""
        deployment, artifact = deployed.deployment, self._made.artifact(deployed.export)
        name = f"{deployment.name}.{batch}"
        path = self._out / "explained" / f"{name}.json"
        options = self._options(deployment)
        if path.is_file() or options is None or not self._made.is_made(deployed.export):
            self._jobs.skip("explain")
            return
        words = ["-m", "loadtest", "explain", str(artifact), "--runtime", deployment.runtime, "--out", str(path)]
        words += ["--threads", str(deployment.threads), "--batch", str(batch)]
        words += ["--options", msgspec.json.encode(options).decode()]
        reason = self._jobs.run("explain", name, words, by=deployment.runtime)
        # A runtime without a profiler has a file that says so.
        self._jobs.remember("explain", name, None if path.is_file() else reason)

    def _tuned(self, deployment: Deployment) -> Path:
        return self._out / "tuned" / f"{deployment.name}.json"

    def _options(self, deployment: Deployment) -> dict[str, Any] | None:
        """What a deployment is measured with: tuned ones as they were found, null where they were not."""
        if deployment.settings == "default":
            return deployment.options
        path = self._tuned(deployment)
        return deployment.options | store.read_json(path, Tuned).chosen if path.is_file() else None

    def _launch(self, deployed: Deployed, index: int, kind: str) -> None:
        """One fresh process of a deployment and its cells of this kind that are not done, in order."""
        asked = [cell for cell in deployed.cells if _kind(cell.profile) == kind]
        if not asked:
            return
        options = self._options(deployed.deployment)
        if options is None:
            self._jobs.skip(kind)
            return
        asked = [replace(cell, deployment=replace(cell.deployment, options=options)) for cell in asked]
        cells = tuple(cell for cell in asked if not self._is_done(cell, index))
        images = self._made.images(deployed)
        if not cells or images is None or not self._made.is_made(deployed.export):
            self._jobs.skip(kind)
            return
        cells = self._refuse(cells, deployed.export.training.size, index)
        if not cells:
            self._jobs.skip(kind)
            return
        environment = deployed.deployment.environment
        if environment is not None and (reason := self._made.environment(environment)) is not None:
            for cell in cells:
                self.close(cell, index, reason)
            self._jobs.skip(kind)
            return
        foreign = deployed.deployment.server
        server, client = machine.divide_cpus((foreign and foreign.cores) or deployed.deployment.cores)
        expected = self._made.expected(deployed)
        launch = Launch(
            study=self._study.name,
            index=index,
            cells=cells,
            artifact=str(self._made.artifact(deployed.export)),
            results=str(self._out / "results"),
            images=str(images),
            expected=str(expected) if expected else None,
            server_cpus=server,
            client_cpus=client,
            seed=index,
            selftest=self._selftest.verdict if self._selftest else None,
        )
        name = f"{deployed.deployment.name}.{index}"
        path = self._out / "logs" / f"{kind}.{name}.json"
        store.write_json(path, launch)
        env = {} if kind == "http" else machine.thread_environment(deployed.deployment.threads)
        reason = self._jobs.run(
            kind, name, ["-m", "loadtest", "launch", str(path)], env, by=deployed.deployment.runtime
        )
        for cell in cells:
            self.close(cell, index, reason)

    def _test_load_generator(self) -> None:
        """The self-test, until it holds once in this folder, where there is anything to measure over HTTP.

        Raises CannotRun when it fails; what is measured `anyway` is marked, and measured again when it holds.
        """
        folder = self._out / "selftest"
        path = folder / "selftest.json"
        if not self._sizes or not self._has_artifacts():
            return
        reason = None
        if path.is_file() and not store.read_json(path, SelfTest).failed:
            self._jobs.skip("selftest")
        else:
            words = ["-m", "loadtest", "selftest", "--size", ",".join(map(str, self._sizes)), "--out", str(folder)]
            reason = self._jobs.run("selftest", "selftest", words)
        if path.is_file():
            self._selftest = store.read_json(path, SelfTest)
        self._jobs.remember("selftest", "selftest", reason)
        if reason is not None and not self._anyway:
            raise CannotRun(
                f"{reason}; nothing was measured: stop what else runs on this machine, and give the same command "
                "again, or measure with --anyway"
            )

    def _has_artifacts(self) -> bool:
        """Whether there is anything to measure."""
        return any(self._made.is_made(export) for export in self._plan.exports)

    def _refuse(self, cells: tuple[Cell, ...], size: int, index: int) -> tuple[Cell, ...]:
        """The cells that the generator has power for; the others get a result that says why it has not."""
        roofline = self._selftest.roofline.get(size) if self._selftest else None
        if roofline is None:
            return cells
        above = [cell for cell in cells if (cell.profile.rate or 0.0) > ROOFLINE * roofline]
        for cell in above:
            reason = (
                f"{cell.profile.rate:g} requests a second are more than {ROOFLINE * 100:.0f} % of the {roofline:,.0f} "
                f"that the load generator reaches here at {size} px; take a profile of a lower rate, or faster cores"
            )
            self.close(cell, index, reason)
        return tuple(cell for cell in cells if cell not in above)

    def close(self, cell: Cell, index: int, reason: str | None) -> None:
        """Count a cell; one that a dead launch left without a result gets a failed one with the reason."""
        folder = self._out / "results" / cell.name / str(index)
        if not (folder / "result.json").is_file():
            result = Result(
                study=self._study.name,
                cell=cell,
                launch=index,
                status="failed",
                reason=reason or "the launch ended without a result",
                started=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            with store.new_folder(folder) as partial:
                store.write_json(partial / "result.json", result)
        if not self._is_done(cell, index):
            self._jobs.failed += 1

    def _is_done(self, cell: Cell, index: int) -> bool:
        path = self._out / "results" / cell.name / str(index) / "result.json"
        if not path.is_file() or (result := store.read_json(path, Result)).status != "done":
            return False
        # The study may ask for more time than when it was measured.
        if not run_folder.extends(result.cell, cell):
            return False
        holds = self._selftest is not None and not self._selftest.failed
        return not (holds and result.selftest is not None and result.selftest.failed)


def _kind(profile: LoadProfile) -> str:
    """Which process measures it: what a mistake leaves behind there must not meet what is measured soundly."""
    if profile.mode != "in-process":
        return "http"
    return "in-process" if profile.mistake is None else "cold" if profile.mistake == "compile-inside" else "mistake"
