"""How much work a plan is, and about how long it takes on this machine."""

import time
from math import inf
from pathlib import Path

from medserve import environments, run_folder, store
from medserve.matrix import environments_of, plan, readers
from medserve.preparation import EXPORTS_AT_A_TIME
from medserve.result import Result
from medserve.spec import MOST_SECONDS, LoadProfile, Noun
from medserve.study import Deployed, Export, Study, Training
from medserve.tables import ARCHITECTURES, DATASETS

PROBE_SECONDS = 0.005
"""What `_probe` takes on the machine of the figures below: 2 cores of an AMD EPYC, November 2026."""
TRAIN_SECONDS = 7.0
"""Of a training beside its steps: imports, compilation, scores."""
TRAIN_SPEED = {"pytorch": 8.1e10, "keras_tf": 8.5e10, "flax_nnx": 4.8e10}
"""Multiply-adds per second in training, forwards and backwards, of a convolutional network."""
BACKWARDS = 3
"""Multiply-adds of a training step over those of a prediction."""
EXPORT_SECONDS = 9.0
PREDICT_SPEED = 4e10
"""Multiply-adds per second of a prediction on one core."""
TUNING_LAUNCHES, TUNING_SECONDS = 14, 4.0
"""Of a tuned deployment, and how long each lasts beside its start."""
ENVIRONMENT_SECONDS = 50.0
"""Of an environment that is downloaded and installed; it depends on the network."""
PEAKS_SECONDS, EXPLAIN_SECONDS = 6.0, 8.0
"""Of each number of threads, and of each batch of a deployment, beside its start."""
SELFTEST_SECONDS, SELFTEST_SIZE_SECONDS = 20.0, 4.0
START_SECONDS = {"null": 0.5, "onnx_runtime": 1.5, "openvino_cpu": 1.5, "torchscript": 3.5, "stablehlo": 4.5}
START_AT_MOST = 6.0
"""From the start of a process to a runtime that is ready; the latter for those not named."""
LOCUST_SECONDS = 1.5
"""The start and end of a load generator."""
REQUEST_SECONDS = 0.0004
"""What HTTP adds to a prediction."""


class Work(Noun, frozen=True, kw_only=True):
    """A kind of jobs: how many there are, how many of them are done, what they are, and the seconds of the others."""

    kind: str
    jobs: int
    done: int
    what: str
    seconds: float


class Forecast(Noun, frozen=True, kw_only=True):
    """The work of a study, what it asks for and cannot have, and the seconds that are left on this machine.

    `cells` has the profiles of each deployment.
    """

    work: tuple[Work, ...]
    cells: dict[str, tuple[str, ...]]
    left_out: tuple[str, ...]
    seconds: float


def forecast(study: Study, out: Path) -> Forecast:
    """The work of a study in the folder `out`, where some of it may be done. Takes half a second. Raises BadInput."""
    found, pace = plan(study), _probe() / PROBE_SECONDS
    trained = [(out / "checkpoints" / made.name / "checkpoint.json").is_file() for made in found.trainings]
    exported = [(out / "artifacts" / made.name / "artifact.json").is_file() for made in found.exports]
    launches = [(deployed, index) for deployed in found.deployed for index in range(study.launches)]
    missing = [_missing(out, deployed, index) for deployed, index in launches]
    over_http = {one.export.training.size for one in found.deployed if any(_http(profile) for profile in one.profiles)}
    tested = (out / "selftest" / "selftest.json").is_file()
    needed = {one.name: environments.place(one) for one in environments_of(study, found)}
    made = sum(environments.installed(folder) is not None for folder in needed.values())
    cells = sum(len(deployed.profiles) for deployed in found.deployed)
    seconds = {
        "train": sum(_training(made) for made, done in zip(found.trainings, trained, strict=True) if not done),
        "export": sum(_export(study, made) for made, done in zip(found.exports, exported, strict=True) if not done)
        / EXPORTS_AT_A_TIME,
        "self-test": (SELFTEST_SECONDS + SELFTEST_SIZE_SECONDS * len(over_http)) * (bool(over_http) and not tested),
    }
    tuned = [one.deployment for one in found.deployed if one.deployment.settings == "tuned"]
    chosen = [(out / "tuned" / f"{deployment.name}.json").is_file() for deployment in tuned]
    seconds["tune"] = sum(
        TUNING_LAUNCHES * (TUNING_SECONDS + START_SECONDS.get(deployment.runtime, START_AT_MOST) * pace)
        for deployment, done in zip(tuned, chosen, strict=True)
        if not done
    )
    peaks = {one.peaks for one in found.deployed if one.computes}
    peaked = sum((out / "peaks" / f"{known}.json").is_file() for known in peaks)
    inside = [
        (one.deployment, (out / "explained" / f"{one.deployment.name}.{batch}.json").is_file())
        for one in found.deployed
        for batch in (one.batches_in_process if study.explain and one.computes else ())
    ]
    seconds["explain"] = sum(
        EXPLAIN_SECONDS + START_SECONDS.get(deployment.runtime, START_AT_MOST) * pace
        for deployment, done in inside
        if not done
    )
    lasting, starting = 0.0, 0.0
    for (deployed, _), profiles in zip(launches, missing, strict=True):
        lasting += sum(_lasts(deployed, profile, pace) for profile in profiles)
        processes = len({_http(profile) for profile in profiles})
        starting += START_SECONDS.get(deployed.deployment.runtime, START_AT_MOST) * processes
        starting += LOCUST_SECONDS * sum(_http(profile) for profile in profiles)
    work = (
        Work(kind="train", jobs=len(trained), done=sum(trained), what="networks", seconds=seconds["train"] * pace),
        Work(kind="export", jobs=len(exported), done=sum(exported), what="artifacts", seconds=seconds["export"] * pace),
        Work(
            kind="environments", jobs=len(needed), done=made, what="for servers",
            seconds=ENVIRONMENT_SECONDS * (len(needed) - made) * pace,
        ),
        Work(
            kind="self-test", jobs=int(bool(over_http)), done=int(tested), what="of the load generator",
            seconds=seconds["self-test"],
        ),
        Work(kind="tune", jobs=len(tuned), done=sum(chosen), what="deployments", seconds=seconds["tune"]),
        Work(
            kind="peaks", jobs=len(peaks), done=peaked, what="of the machine",
            seconds=PEAKS_SECONDS * (len(peaks) - peaked),
        ),
        Work(
            kind="measure", jobs=len(launches), done=sum(not profiles for profiles in missing),
            what=f"launches of {len(found.deployed)} deployments with {cells} cells", seconds=lasting + starting * pace,
        ),
        Work(
            kind="explain", jobs=len(inside), done=sum(done for _, done in inside), what="profiles inside the model",
            seconds=seconds["explain"],
        ),
    )  # fmt: skip
    named = {one.deployment.name: tuple(profile.name for profile in one.profiles) for one in found.deployed}
    return Forecast(work=work, cells=named, left_out=found.left_out, seconds=sum(one.seconds for one in work))


def _training(made: Training) -> float:
    images = _images(made)[0]
    steps = made.recipe.epochs * images * _multiply_adds(made) * BACKWARDS
    return TRAIN_SECONDS + steps / TRAIN_SPEED.get(made.framework, min(TRAIN_SPEED.values()))


def _export(study: Study, made: Export) -> float:
    """With a certificate on the whole test split for each runtime that reads it; one made elsewhere is copied."""
    if made.adopted is not None:
        return 0.1
    scored = _images(made.training)[1] * _multiply_adds(made.training) / PREDICT_SPEED
    return EXPORT_SECONDS + scored * max(1, len(readers(study, made.format)))


def _images(made: Training) -> tuple[int, int]:
    """Images for training and for testing; of one's own about 70 % and 20 % of the files, or of an archive's size."""
    if not made.path:
        return DATASETS[made.dataset].train, DATASETS[made.dataset].test
    path = Path(made.path)
    files = sum(one.is_file() for one in path.rglob("*"))
    images = files or (path.stat().st_size // (3 * made.size**2) if path.is_file() else 0)
    return round(0.7 * images), round(0.2 * images)


def _lasts(deployed: Deployed, profile: LoadProfile, pace: float) -> float:
    """Seconds of a cell: its own, prolonged for its requests as far as a minute."""
    if profile.mode == "open-loop":
        return profile.warmup_seconds + profile.scheduled_seconds
    each = (
        0.0
        if not deployed.computes
        else profile.batch * _multiply_adds(deployed.export.training) / PREDICT_SPEED * pace
    )
    each += REQUEST_SECONDS * pace + profile.gap_seconds if _http(profile) else 0.0
    wanted = profile.requests * each / profile.users
    return profile.warmup_seconds + max(profile.seconds, wanted if wanted <= MOST_SECONDS else 0.0)


def _missing(out: Path, deployed: Deployed, index: int) -> list[LoadProfile]:
    """The profiles of a deployment that a launch has not measured."""
    missing = []
    for cell in deployed.cells:
        path = out / "results" / cell.name / str(index) / "result.json"
        result = store.read_json(path, Result) if path.is_file() else None
        if result is None or result.status != "done" or not run_folder.extends(result.cell, cell):
            missing.append(cell.profile)
    return missing


def _multiply_adds(made: Training) -> float:
    """Of one image: those at 224 px, by the number of pixels; of a network made elsewhere, of an average one."""
    known = ARCHITECTURES.get(made.architecture, ARCHITECTURES["resnet18"])
    return known.multiply_adds * (made.size / 224) ** 2


def _http(profile: LoadProfile) -> bool:
    return profile.mode != "in-process"


def _probe() -> float:
    """Seconds of a fixed piece of work, half of it Python and half arithmetic on arrays: the quickest of several."""
    import numpy as np

    values = np.ones(1_000_000, dtype=np.float32)
    quickest = inf
    for _ in range(15):
        began = time.perf_counter()
        for _ in range(12):
            np.multiply(values, 0.5, out=values)
        total = 0
        for number in range(150_000):
            total += number
        quickest = min(quickest, time.perf_counter() - began)
    return quickest
