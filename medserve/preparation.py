"""Data, checkpoints and artifacts of a run: made where they are missing, kept in the folder of the run."""

import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np

from medserve import environments, machine, process, store
from medserve.errors import BadInput
from medserve.job_runner import JobRunner
from medserve.jobs import Prepared
from medserve.matrix import readers
from medserve.spec import Environment, window_words
from medserve.study import Deployed, Export, Model, Study, Training
from medserve.tables import scores_file

GOLDEN_IMAGES, GOLDEN_SCORES = "golden_images.npy", "golden_scores.npy"
"""Beside the manifest of a network that was made elsewhere."""
EXPORTS_AT_A_TIME = 2
"""They are not measured; most of their time goes into imports and tracing, which take one core."""


class Preparation:
    """Makes what the study measures, as jobs of the run in the folder `out`."""

    def __init__(self, study: Study, out: Path, jobs: JobRunner) -> None:
        self._study, self._out, self._jobs = study, out, jobs
        self._data: dict[tuple[str, int], Prepared | str] = {}
        self._environments: dict[str, str | None] = {}

    def train(self, training: Training) -> None:
        """The checkpoint of a training."""
        data = self._prepare(training)
        folder = self._checkpoint(training)
        if isinstance(data, str) or (folder / "checkpoint.json").is_file():
            self._jobs.skip("train")
            if isinstance(data, str):
                self._jobs.remember("train", training.name, data)
            return
        words = ["-m", "train", "run", "--dataset", training.path or training.dataset, *self._data_options(training)]
        words += ["--architecture", training.architecture, "--framework", training.framework, "--out", str(folder)]
        for field, value in msgspec.to_builtins(training.recipe).items():
            words += ["--set", f"{field}={value}"]
        self._jobs.remember(
            "train", training.name, self._jobs.run("train", training.name, words, by=training.framework)
        )

    def export_all(self, exports: Sequence[Export]) -> None:
        """The artifacts of the study, a few side by side."""
        with ThreadPoolExecutor(min(EXPORTS_AT_A_TIME, len(machine.usable_cpus()))) as pool:
            jobs = [pool.submit(self._export, export) for export in exports]
            try:
                for job in jobs:
                    job.result()
            except BaseException:
                # Ctrl-C reaches the main thread alone.
                self._jobs.stopped = True
                pool.shutdown(wait=False, cancel_futures=True)
                while any(job.running() for job in jobs):
                    process.stop_all()
                    time.sleep(0.1)
                raise

    def environment(self, environment: Environment) -> str | None:
        """Make an environment, once a run. Returns null, or the reason why there is none."""
        name = environment.name
        if name not in self._environments:
            try:
                reason, is_made = None, environments.installed(environments.place(environment)) is not None
            except BadInput as error:
                reason, is_made = str(error), True
            if is_made:
                self._jobs.skip("environment")
            else:
                words = ["-m", "medserve.environments", "make", msgspec.json.encode(environment).decode()]
                reason = self._jobs.run("environment", name, words)
            self._jobs.remember("environment", name, reason)
            self._environments[name] = reason
        return self._environments[name]

    def environments(self) -> None:
        """Make those in which frameworks and runtimes run, whose jobs fail where one cannot be made."""
        pythons: dict[str, str] = {}
        for environment in self._study.environments:
            if environment.runs:
                self.environment(environment)
                pythons |= dict.fromkeys(environment.runs, str(environments.place(environment) / "bin" / "python"))
        process.use_pythons(pythons)

    def images(self, deployed: Deployed) -> Path | None:
        """What a deployment is measured with: images of the test split, or golden ones; null where there are none."""
        training = deployed.export.training
        if deployed.export.adopted is not None:
            path = self._checkpoint(training) / GOLDEN_IMAGES
            return path if path.is_file() else None
        data = self._prepare(training)
        return None if isinstance(data, str) else Path(data.folder) / "test_images.npy"

    def expected(self, deployed: Deployed) -> Path | None:
        """The scores that answers are checked against; null for a deployment that computes none."""
        if not deployed.computes:
            return None
        if deployed.export.precision != "float32":
            # Its answers are other ones than the trainer's, and still always the same.
            form, runtime = deployed.export.format, deployed.deployment.runtime
            return self.artifact(deployed.export) / scores_file(form, runtime)
        name = "test_scores.npy" if deployed.export.adopted is None else GOLDEN_SCORES
        return self._checkpoint(deployed.export.training) / name

    def artifact(self, export: Export) -> Path:
        """The folder of an artifact, made or not."""
        return self._out / "artifacts" / export.name

    def is_made(self, export: Export) -> bool:
        """Whether there is an artifact, whole."""
        return (self.artifact(export) / "artifact.json").is_file()

    def _export(self, export: Export) -> None:
        if export.adopted is not None:
            self._adopt(export, export.adopted)
            return
        checkpoint = self._checkpoint(export.training)
        folder = self.artifact(export)
        if self.is_made(export) or not (checkpoint / "checkpoint.json").is_file():
            self._jobs.skip("export")
            return
        words = ["-m", "export", str(checkpoint), "--format", export.format, "--framework", export.framework]
        words += ["--out", str(folder)]
        words += ["--precision", export.precision, "--device", self._study.device]
        behind = (server.runtime for server in self._study.servers if server.format == export.format)
        for runtime in dict.fromkeys((*readers(self._study, export.format), *behind)):
            words += ["--runtime", runtime]
        self._jobs.remember("export", export.name, self._jobs.run("export", export.name, words, by=export.framework))

    def _adopt(self, export: Export, model: Model) -> None:
        """Copy the artifact of a model that was made elsewhere, with its golden images and the scores it must keep."""
        folder, home = self.artifact(export), self._checkpoint(export.training)
        if self.is_made(export):
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
        self._jobs.ended("export", export.name, started, reason)
        self._jobs.remember("export", export.name, reason)

    def _prepare(self, training: Training) -> Prepared | str:
        """The unpacked data set of a training, or the reason why there is none. Asked once a run."""
        key = (training.dataset, training.size)
        if key not in self._data:
            words = ["-m", "train", "data", "prepare", training.path or training.dataset, "--json"]
            words += self._data_options(training)
            said: list[bytes] = []
            reason = self._jobs.run("data", f"{training.dataset}-{training.size}", words, said=said)
            try:
                self._data[key] = reason or msgspec.json.decode(b"".join(said), type=Prepared)
            except msgspec.MsgspecError as error:
                self._data[key] = f"`medserve data prepare` printed no data set: {error}"
        return self._data[key]

    def _data_options(self, training: Training) -> list[str]:
        """The options of which images a training takes, and how they are read."""
        words = ["--size", str(training.size), *(["--unofficial"] if self._study.unofficial else [])]
        return words + (window_words(self._study.window) if training.path else [])

    def _checkpoint(self, training: Training) -> Path:
        return self._out / "checkpoints" / training.name
