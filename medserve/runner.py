"""Walks a study: one process a job, everything resumable, every failure a row with its reason.

The folder of a run is its only state. A job that is done has its folder; a job that is not leaves nothing but its log.
"""

import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace

from medserve import machine, process, run_folder, stage, store
from medserve.errors import BadInput, CannotRun
from medserve.jobs import Failure, Launch, Prepared, Tuned
from medserve.matrix import plan, readers
from medserve.progress import Jobs, Progressed, describe
from medserve.result import Result, SelfTest
from medserve.spec import Cell, Deployment, LoadProfile
from medserve.study import Deployed, Export, Model, Plan, Study, Training
from medserve.tables import ROOFLINE, scores_file


class Step(msgspec.Struct, frozen=True):
    """What the runner says while it works: `state` is started, progress, done or failed; times in seconds."""

    state: str
    kind: str
    name: str
    done: int
    total: int
    note: str = ""
    seconds: float | None = None
    seconds_left: float | None = None


Listener = Callable[[Step], None]
KINDS = ("in-process", "http", "mistake", "cold")
"""Of launches, in the order in which a deployment goes through them."""
GOLDEN_IMAGES, GOLDEN_SCORES = "golden_images.npy", "golden_scores.npy"
"""Beside the manifest of a network that was made elsewhere."""
EXPORTS_AT_A_TIME = 2
"""They are not measured; most of their time goes into imports and tracing, which take one core."""


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


class _Run:
    def __init__(self, study: Study, matrix: Plan, out: Path, listen: Listener, anyway: bool = False) -> None:
        self._study, self._plan, self._out, self._listen, self._anyway = study, matrix, out, listen, anyway
        launched = Counter(kind for deployed in matrix.deployed for kind in {_kind(one) for one in deployed.profiles})
        over_http = (one for one in matrix.deployed if any(_kind(profile) == "http" for profile in one.profiles))
        self._computing = [deployed for deployed in matrix.deployed if deployed.computes]
        self._threads = list(dict.fromkeys(one.deployment.threads for one in self._computing if one.on_processor))
        self._sizes = list(dict.fromkeys(one.export.training.size for one in over_http))
        self._jobs = Jobs(
            {
                "data": len({(training.dataset, training.size) for training in matrix.trainings}),
                "train": len(matrix.trainings),
                "export": len(matrix.exports),
                "selftest": int(bool(self._sizes)),
                "tune": sum(deployed.deployment.settings == "tuned" for deployed in matrix.deployed),
                "peaks": len(self._threads),
                **{kind: study.launches * launched[kind] for kind in KINDS},
                "explain": study.explain * sum(len(one.batches_in_process) for one in self._computing),
            },
            {"export": EXPORTS_AT_A_TIME},
        )
        self._data: dict[tuple[str, int], Prepared | str] = {}
        self._selftest: SelfTest | None = None
        self._failed = 0
        # Exports go side by side.
        self._lock = threading.RLock()
        self._stopped = False

    def walk(self) -> int:
        for training in self._plan.trainings:
            self._train(training)
        self._export_all(self._plan.exports)
        self._test_load_generator()
        for deployed in self._plan.deployed:
            self._tune(deployed)
        for threads in self._threads:
            self._measure_peaks(threads)
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
        return self._failed

    def _train(self, training: Training) -> None:
        data = self._prepare(training)
        folder = self._checkpoint(training)
        if isinstance(data, str) or (folder / "checkpoint.json").is_file():
            self._jobs.skip("train")
            if isinstance(data, str):
                self._remember("train", training.name, data)
            return
        words = ["-m", "train", "run", "--dataset", training.dataset, "--size", str(training.size)]
        words += ["--architecture", training.architecture, "--framework", training.framework, "--out", str(folder)]
        for field, value in msgspec.to_builtins(training.recipe).items():
            words += ["--set", f"{field}={value}"]
        words += ["--unofficial"] if self._study.unofficial else []
        self._remember("train", training.name, self._run("train", training.name, words))

    def _export_all(self, exports: Sequence[Export]) -> None:
        with ThreadPoolExecutor(min(EXPORTS_AT_A_TIME, len(machine.usable_cpus()))) as pool:
            jobs = [pool.submit(self._export, export) for export in exports]
            try:
                for job in jobs:
                    job.result()
            except BaseException:
                # Ctrl-C reaches the main thread alone.
                self._stopped = True
                pool.shutdown(wait=False, cancel_futures=True)
                while any(job.running() for job in jobs):
                    process.stop_all()
                    time.sleep(0.1)
                raise

    def _export(self, export: Export) -> None:
        if export.adopted is not None:
            self._adopt(export, export.adopted)
            return
        checkpoint = self._checkpoint(export.training)
        folder = self._artifact(export)
        if (folder / "artifact.json").is_file() or not (checkpoint / "checkpoint.json").is_file():
            with self._lock:
                self._jobs.skip("export")
            return
        words = ["-m", "export", str(checkpoint), "--format", export.format, "--framework", export.framework]
        words += ["--out", str(folder)]
        words += ["--precision", export.precision]
        for runtime in readers(self._study, export.format):
            words += ["--runtime", runtime]
        self._remember("export", export.name, self._run("export", export.name, words))

    def _adopt(self, export: Export, model: Model) -> None:
        """Copy the artifact of a model that was made elsewhere, with its golden images and the scores it must keep."""
        folder, home = self._artifact(export), self._checkpoint(export.training)
        if (folder / "artifact.json").is_file():
            with self._lock:
                self._jobs.skip("export")
            return
        started, reason = time.monotonic(), None
        try:
            source = Path(model.artifact)
            manifest = store.read_artifact(source, model.digest)
            with store.new_folder(home) as partial:
                for ours, theirs in (("test_scores.npy", "reference.npy"), ("test_labels.npy", "labels.npy")):
                    if theirs in manifest.files:
                        shutil.copyfile(source / theirs, partial / ours)
                with np.load(source / "golden.npz") as golden:
                    np.save(partial / GOLDEN_IMAGES, golden["images"])
                    np.save(partial / GOLDEN_SCORES, golden["scores"])
                store.write_json(partial / "checkpoint.json", manifest.checkpoint)
            with store.new_folder(folder) as partial:
                shutil.copytree(source, partial, dirs_exist_ok=True)
        except (BadInput, OSError) as error:
            reason = str(error)
        with self._lock:
            seconds = time.monotonic() - started
            self._jobs.done("export", seconds)
            self._say("failed" if reason else "done", "export", export.name, reason or "", seconds)
        self._remember("export", export.name, reason)

    def _tune(self, deployed: Deployed) -> None:
        """Find the options of a tuned deployment on launches of its own, once a machine."""
        deployment, artifact = deployed.deployment, self._artifact(deployed.export)
        if deployment.settings == "default":
            return
        path = self._tuned(deployment)
        known = path.is_file() and store.read_json(path, Tuned).machine.get("versions")
        if not (artifact / "artifact.json").is_file() or known == machine.versions():
            self._jobs.skip("tune")
            return
        words = ["-m", "loadtest", "tune", str(artifact), "--out", str(path)]
        words += ["--deployment", msgspec.json.encode(deployment).decode()]
        self._remember("tune", deployment.name, self._run("tune", deployment.name, words))

    def _measure_peaks(self, threads: int) -> None:
        """What the machine computes and reads at most with so many threads, once a folder."""
        path = self._out / "peaks" / f"{threads}.json"
        if path.is_file() or not self._has_artifacts():
            self._jobs.skip("peaks")
            return
        words = ["-m", "loadtest", "peaks", "--threads", str(threads), "--out", str(path)]
        self._remember("peaks", str(threads), self._run("peaks", f"{threads}", words))

    def _explain(self, deployed: Deployed, batch: int) -> None:
        """Where the time of a deployment goes inside the model, with the options that it was measured with."""
        deployment, artifact = deployed.deployment, self._artifact(deployed.export)
        name = f"{deployment.name}.{batch}"
        path = self._out / "explained" / f"{name}.json"
        options = self._options(deployment)
        if path.is_file() or options is None or not (artifact / "artifact.json").is_file():
            self._jobs.skip("explain")
            return
        words = ["-m", "loadtest", "explain", str(artifact), "--runtime", deployment.runtime, "--out", str(path)]
        words += ["--threads", str(deployment.threads), "--batch", str(batch)]
        words += ["--options", msgspec.json.encode(options).decode()]
        reason = self._run("explain", name, words)
        # A runtime without a profiler has a file that says so.
        self._remember("explain", name, None if path.is_file() else reason)

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
        images = self._images(deployed)
        if not cells or images is None or not (self._artifact(deployed.export) / "artifact.json").is_file():
            self._jobs.skip(kind)
            return
        cells = self._refuse(cells, deployed.export.training.size, index)
        if not cells:
            self._jobs.skip(kind)
            return
        server, client = machine.divide_cpus(deployed.deployment.threads)
        scores = images.with_name(GOLDEN_SCORES)
        if deployed.export.adopted is None:
            scores = self._checkpoint(deployed.export.training) / "test_scores.npy"
        if deployed.export.precision != "float32":
            # Its answers are other ones than the trainer's, and still always the same.
            form, runtime = deployed.export.format, deployed.deployment.runtime
            scores = self._artifact(deployed.export) / scores_file(form, runtime)
        launch = Launch(
            study=self._study.name,
            index=index,
            cells=cells,
            artifact=str(self._artifact(deployed.export)),
            results=str(self._out / "results"),
            images=str(images),
            expected=str(scores) if deployed.computes else None,
            server_cpus=server,
            client_cpus=client,
            seed=index,
            selftest=self._selftest.verdict if self._selftest else None,
        )
        name = f"{deployed.deployment.name}.{index}"
        path = self._out / "logs" / f"{kind}.{name}.json"
        store.write_json(path, launch)
        env = {} if kind == "http" else machine.thread_environment(deployed.deployment.threads)
        reason = self._run(kind, name, ["-m", "loadtest", "launch", str(path)], env)
        for cell in cells:
            self._close(cell, index, reason)

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
            reason = self._run("selftest", "selftest", words)
        if path.is_file():
            self._selftest = store.read_json(path, SelfTest)
        self._remember("selftest", "selftest", reason)
        if reason is not None and not self._anyway:
            raise CannotRun(
                f"{reason}; nothing was measured: stop what else runs on this machine, and give the same command "
                "again, or measure with --anyway"
            )

    def _has_artifacts(self) -> bool:
        """Whether there is anything to measure."""
        return any((self._artifact(export) / "artifact.json").is_file() for export in self._plan.exports)

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
            self._close(cell, index, reason)
        return tuple(cell for cell in cells if cell not in above)

    def _close(self, cell: Cell, index: int, reason: str | None) -> None:
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
            self._failed += 1

    def _images(self, deployed: Deployed) -> Path | None:
        """What a deployment is measured with: images of the test split, or golden ones; null where there are none."""
        training = deployed.export.training
        if deployed.export.adopted is not None:
            path = self._checkpoint(training) / GOLDEN_IMAGES
            return path if path.is_file() else None
        data = self._prepare(training)
        return None if isinstance(data, str) else Path(data.folder) / "test_images.npy"

    def _prepare(self, training: Training) -> Prepared | str:
        """The unpacked data set of a training, or the reason why there is none. Asked once a run."""
        key = (training.dataset, training.size)
        if key not in self._data:
            words = ["-m", "train", "data", "prepare", training.dataset, "--size", str(training.size), "--json"]
            words += ["--unofficial"] if self._study.unofficial else []
            said: list[bytes] = []
            reason = self._run("data", f"{training.dataset}-{training.size}", words, said=said)
            try:
                self._data[key] = reason or msgspec.json.decode(b"".join(said), type=Prepared)
            except msgspec.MsgspecError as error:
                self._data[key] = f"`medserve data prepare` printed no data set: {error}"
        return self._data[key]

    def _checkpoint(self, training: Training) -> Path:
        return self._out / "checkpoints" / training.name

    def _artifact(self, export: Export) -> Path:
        return self._out / "artifacts" / export.name

    def _is_done(self, cell: Cell, index: int) -> bool:
        path = self._out / "results" / cell.name / str(index) / "result.json"
        if not path.is_file() or (result := store.read_json(path, Result)).status != "done":
            return False
        # The study may ask for more time than when it was measured.
        if not run_folder.extends(result.cell, cell):
            return False
        holds = self._selftest is not None and not self._selftest.failed
        return not (holds and result.selftest is not None and result.selftest.failed)

    def _remember(self, stage: str, name: str, reason: str | None) -> None:
        path = self._out / "failures" / f"{stage}-{name}.json"
        if reason is None:
            path.unlink(missing_ok=True)
        else:
            store.write_json(path, Failure(stage=stage, name=name, reason=reason))
            with self._lock:
                self._failed += 1

    def _run(
        self,
        kind: str,
        name: str,
        words: list[str],
        env: Mapping[str, str] | None = None,
        said: list[bytes] | None = None,
    ) -> str | None:
        """Run one job to its end. Returns None, or the reason why it failed; appends what it prints to `said`."""
        started = time.monotonic()
        self._say("started", kind, name)
        log = self._out / "logs" / f"{kind}.{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)

        def show(event: Progressed) -> None:
            self._say("progress", kind, name, describe(event))

        code, printed, reason = stage.run(words, log, seconds=self._study.job_hours * 3600, env=env, show=show)
        if self._stopped:
            raise KeyboardInterrupt
        if said is not None:
            said.append(printed)
        seconds = time.monotonic() - started
        with self._lock:
            self._jobs.done(kind, seconds)
            self._say("failed" if code else "done", kind, name, reason, seconds)
        return reason if code else None

    def _say(self, state: str, kind: str, name: str, note: str = "", seconds: float | None = None) -> None:
        with self._lock:
            jobs = self._jobs
            self._listen(Step(state, kind, name, jobs.finished, jobs.total, note, seconds, jobs.left()))


def _kind(profile: LoadProfile) -> str:
    """Which process measures it: what a mistake leaves behind there must not meet what is measured soundly."""
    if profile.mode != "in-process":
        return "http"
    return "in-process" if profile.mistake is None else "cold" if profile.mistake == "compile-inside" else "mistake"
