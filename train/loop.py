"""The training loop of all frameworks: learning rates, epochs, scores, resumable state, checkpoint.

After every epoch the trainer's state is saved in a hidden folder beside the future checkpoint. A training that is
killed at any moment resumes from the last complete state and ends with the weights of an uninterrupted training,
because all random numbers depend on (seed, epoch) only.
"""

import shutil
import time
from math import isfinite
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from medserve import document, plugins
from medserve.errors import BadInput, CannotRun
from medserve.machine import process_facts, versions
from medserve.models import Architecture, Checkpoint, Epoch, Recipe, Split, Task
from medserve.progress import Progress, duration
from medserve.scores import score, shares_right
from medserve.spec import Noun
from medserve.store import check_digests, digests, new_folder, read_checkpoint, read_json, write_json
from medserve.tables import ARCHITECTURES, pick
from train import pretrained
from train.archives import say
from train.batches import batches
from train.data import Dataset
from train.frameworks import COMMON, InitialState, Trainer, restore, save
from train.models import computation


class Inputs(Noun, frozen=True, kw_only=True):
    """Everything that determines a checkpoint."""

    dataset: str
    size: int
    architecture: str
    framework: str
    recipe: Recipe
    initial_digest: str | None
    data_digest: str


class State(Noun, frozen=True, kw_only=True):
    """`state.json`: a training after some epochs. `step_seconds` has one value per step; `files` as in Checkpoint."""

    inputs: Inputs
    versions: dict[str, str]
    history: tuple[Epoch, ...]
    step_seconds: tuple[float, ...]
    files: dict[str, str]


def train(data: Dataset, architecture: str, framework: str, recipe: Recipe, out: Path) -> Checkpoint:
    """Train a network and write its checkpoint folder `out`; keep a finished checkpoint with the same inputs.

    Raises BadInput for an invalid recipe or `out`, CannotRun with the step number when a loss is not finite.
    """
    network = pick(ARCHITECTURES, "architecture", architecture).for_channels(data.channels)
    _check(recipe, data)
    digest, weights = pretrained.initial(recipe.initial, network)
    inputs = Inputs(
        dataset=data.name,
        size=data.size,
        architecture=architecture,
        framework=framework,
        recipe=recipe,
        initial_digest=digest,
        data_digest=data.digest,
    )
    states = out.with_name(f".{out.name}.resume")
    checkpoint = _finished_checkpoint(out, inputs)
    if checkpoint is None:
        try:
            states.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise BadInput(f"{states.parent}: is a file, or below a file; choose another --out") from None
        steps = len(data.labels("train")) // recipe.batch
        fresh = State(inputs=inputs, versions=versions(), history=(), step_seconds=(), files={})
        state, saved = _last_state(states, fresh)
        if saved is not None:
            weights = load_file(saved / "weights.safetensors")
        progress = Progress(f"train {out.name}", recipe.epochs * steps, "step")
        progress.resume(len(state.step_seconds))
        last = 0
        for phase in phases(recipe):
            first, last = last, last + phase.epochs
            if last <= len(state.history) < recipe.epochs:
                continue
            initial = InitialState(weights=weights, class_weights=_class_weights(recipe, data))
            trainer = _trainer(network, framework, phase, initial, len(data.classes), steps, data.task)
            if saved is not None and len(state.history) > first:
                restore(trainer, saved)
            for epoch in range(len(state.history), last):
                try:
                    state = _train_epoch(trainer, data, state, epoch, progress)
                except FloatingPointError as error:
                    saved_state = f"the state after epoch {epoch} is in {states}" if epoch else "no state was saved"
                    mend = f"try a learning_rate below {phase.learning_rate}"
                    raise CannotRun(f"{error}; {saved_state}; {mend}") from None
                saved = _save_state(trainer, states, state)
            weights = trainer.weights()
        checkpoint = _write_checkpoint(trainer, data, state, out)
    shutil.rmtree(states, ignore_errors=True)
    return checkpoint


def phases(recipe: Recipe) -> list[Recipe]:
    """The phases of a recipe, each with its own rates and optimiser: `head_epochs` of the head alone, then the rest."""
    head = msgspec.structs.replace(recipe, trains="head", learning_rate=recipe.head_rate, epochs=recipe.head_epochs)
    rest = msgspec.structs.replace(recipe, epochs=recipe.epochs - recipe.head_epochs)
    return [phase for phase in (head, rest) if phase.epochs]


def learning_rates(recipe: Recipe, steps: int) -> NDArray[np.float32]:
    """One rate per step, float32 (steps,): one cycle with cosine annealing (Smith & Topin, 2018).

    It rises from a 25th of the recipe's rate to that rate in 30 % of the steps, then falls to a 250,000th of it. The
    constants are those of torch's OneCycleLR.
    """
    top, start, end = recipe.learning_rate, recipe.learning_rate / 25, recipe.learning_rate / 25e4
    step = np.arange(steps, dtype=np.float64)
    peak, last = 0.3 * steps - 1, steps - 1
    rise = start + (top - start) * (1 - np.cos(np.pi * step / peak)) / 2
    fall = end + (top - end) * (1 + np.cos(np.pi * (step - peak) / (last - peak))) / 2
    return np.where(step <= peak, rise, fall).astype(np.float32)


def predict(trainer: Trainer, data: Dataset, split: Split, batch: int) -> NDArray[np.float32]:
    """Probabilities of a whole split, float32 (n, classes), in file order; all batches have the same shape."""
    count = len(data.labels(split))
    scores = []
    for start in range(0, count, batch):
        # The last batch is padded with its last image: a framework would compile another shape separately.
        indices = np.minimum(np.arange(start, start + batch), count - 1)
        scores.append(trainer.predict(data.take(split, indices)))
    return np.concatenate(scores)[:count]


def _check(recipe: Recipe, data: Dataset) -> None:
    try:
        document.convert(msgspec.to_builtins(recipe), Recipe)
    except BadInput as error:
        raise BadInput(*(f"recipe: {line}" for line in error.lines)) from None
    images, random = len(data.labels("train")), recipe.initial in ("", COMMON)
    bounds = (
        ("batch", recipe.batch <= images, f"from 2 to the {images} training images (--set batch={min(32, images)})"),
        ("shift", recipe.shift < data.size, f"from 0 to {data.size - 1} pixels"),
        ("head_epochs", recipe.head_epochs <= recipe.epochs, f"from 0 to the {recipe.epochs} epochs"),
        ("trains", recipe.trains == "all" or not random, "all, because the rest would stay random"),
    )
    for name, holds, expected in bounds:
        if not holds:
            raise BadInput(f"recipe: {name} is {getattr(recipe, name)}; expected {expected}")


def _finished_checkpoint(out: Path, inputs: Inputs) -> Checkpoint | None:
    """The checkpoint in `out` if it has these inputs, None if `out` is free. Raises BadInput otherwise."""
    if not out.exists():
        return None
    if not (out / "checkpoint.json").is_file():
        if out.is_dir() and not any(out.iterdir()):
            return None
        raise BadInput(f"{out}: exists and is not a checkpoint; choose another --out")
    checkpoint = read_checkpoint(out)
    existing = Inputs(**{name: getattr(checkpoint, name) for name in Inputs.__struct_fields__})
    if existing != inputs:
        differences = _differences(existing, inputs)
        raise BadInput(f"{out}: has a checkpoint of other inputs ({differences}); remove it or choose another --out")
    say(f"{out}: already finished")
    return checkpoint


def _class_weights(recipe: Recipe, data: Dataset) -> NDArray[np.float32] | None:
    """Inverse class frequencies, float32 (classes,), with mean 1 over the training images; None if not `balanced`.

    With several labels per image each label weighs as two classes, float32 (2, classes): those of the weighted loss of
    CheXNet (Rajpurkar et al., 2017), scaled to the same mean.
    """
    if not recipe.balanced:
        return None
    labels = data.labels("train")
    if labels.ndim == 2:
        counts = np.stack([len(labels) - labels.sum(0), labels.sum(0)])
    else:
        counts = np.bincount(labels, minlength=len(data.classes))
    weights: NDArray[np.float64] = len(labels) / (len(counts) * np.maximum(counts, 1))
    return weights.astype(np.float32)


def _trainer(
    network: Architecture,
    framework: str,
    recipe: Recipe,
    initial: InitialState,
    classes: int,
    steps: int,
    task: Task = "multi-class",
) -> Trainer:
    rates = learning_rates(recipe, recipe.epochs * steps)
    create = plugins.load("train.frameworks", framework).create
    try:
        trainer: Trainer = create(network, classes, recipe, rates, initial, task)
    except BadInput as error:
        raise BadInput(f"{recipe.initial}: {error}") from None
    if trainer.parameters != (expected := network.parameters(classes, recipe.hidden)):
        raise CannotRun(
            f"{framework} builds {network.name} with {trainer.parameters} parameters; the table says {expected}"
        )
    return trainer


def _last_state(states: Path, fresh: State) -> tuple[State, Path | None]:
    """The last complete state with the inputs of `fresh`, and its folder; else `fresh` and None."""
    for folder in sorted(states.glob("epoch-*"), key=lambda path: path.name, reverse=True):
        try:
            state = read_json(folder / "state.json", State)
            check_digests(folder, state.files)
        except BadInput as error:
            say(f"cannot resume from a state: {error}")
            continue
        if (state.inputs, state.versions) != (fresh.inputs, fresh.versions):
            differences = _differences(state, fresh)
            say(f"{states}: has other inputs ({differences}); discarded, training starts from the beginning")
            break
        say(f"resuming after epoch {len(state.history)} of {fresh.inputs.recipe.epochs}")
        return state, folder
    return fresh, None


def _train_epoch(trainer: Trainer, data: Dataset, state: State, epoch: int, progress: Progress) -> State:
    """Train one epoch and score the validation split."""
    recipe = state.inputs.recipe
    accuracy = f", val accuracy {state.history[-1].val_accuracy:.4f}" if state.history else ""
    losses, seconds = [], []
    started, cpu = time.perf_counter(), time.process_time()
    for images, labels in batches(data, recipe, epoch):
        start = time.perf_counter()
        loss = trainer.step(images, labels)
        seconds.append(time.perf_counter() - start)
        done = len(state.step_seconds) + len(seconds)
        if not isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} at step {done}: epoch {epoch + 1}, batch {len(seconds)}")
        losses.append(loss)
        progress.update(done, f"epoch {epoch + 1}/{recipe.epochs}, loss {loss:.3f}{accuracy}")
    elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
    scores = predict(trainer, data, "val", recipe.batch)
    if not np.isfinite(scores).all():
        raise FloatingPointError(f"the validation scores are not finite after step {done}: end of epoch {epoch + 1}")
    record = Epoch(
        epoch=epoch + 1,
        loss=float(np.mean(losses)),
        val_accuracy=float(shares_right(data.labels("val"), scores).mean()),
        seconds=elapsed,
        cpu_seconds=cpu,
        images_per_second=recipe.batch / float(np.median(seconds)),
    )
    history, times = (*state.history, record), (*state.step_seconds, *seconds)
    return msgspec.structs.replace(state, history=history, step_seconds=times)


def _save_state(trainer: Trainer, states: Path, state: State) -> Path:
    """Write the state after an epoch, then remove the previous state, so that a complete state always exists."""
    target = states / f"epoch-{len(state.history):06}"
    with new_folder(target) as folder:
        save(trainer, folder)
        state = msgspec.structs.replace(state, files=digests(folder, without="state.json"))
        write_json(folder / "state.json", state)
    for path in states.iterdir():
        if path != target:
            shutil.rmtree(path)
    return target


def _write_checkpoint(trainer: Trainer, data: Dataset, state: State, out: Path) -> Checkpoint:
    """Score the test split and write the checkpoint's folder."""
    inputs = state.inputs
    probabilities, labels = predict(trainer, data, "test", inputs.recipe.batch), data.labels("test")
    step = float(np.median(state.step_seconds))
    with new_folder(out) as folder:
        save(trainer, folder)
        np.save(folder / "test_scores.npy", probabilities)
        # With the labels, accuracy and AUC can be computed again without the data set.
        np.save(folder / "test_labels.npy", labels)
        checkpoint = Checkpoint(
            name=out.name,
            **msgspec.structs.asdict(inputs),
            classes=data.classes,
            task=data.task,
            channels=data.channels,
            parameters=trainer.parameters,
            computation=computation(
                ARCHITECTURES[inputs.architecture].for_channels(data.channels),
                data.size,
                len(data.classes),
                inputs.recipe.hidden,
            ),
            unofficial=data.unofficial,
            unpacked=data.unpacked,
            window=data.window,
            licence=data.licence,
            history=state.history,
            test=score(labels, probabilities),
            train_seconds=sum(epoch.seconds for epoch in state.history),
            images_per_second=inputs.recipe.batch / step,
            compile_seconds=max(0.0, state.step_seconds[0] - step),
            peak_memory_bytes=process_facts()["peak_memory_bytes"],
            versions=state.versions,
            files=digests(folder, without="checkpoint.json"),
        )
        write_json(folder / "checkpoint.json", checkpoint)
    test, of = checkpoint.test, " of labels" if checkpoint.task == "multi-label" else ""
    say(
        f"{out}: test accuracy{of} {test.accuracy:.4f}, balanced {test.balanced_accuracy:.4f}, AUC {test.auc:.4f}; "
        f"{duration(checkpoint.train_seconds)}, {checkpoint.images_per_second:.0f} images/s"
    )
    return checkpoint


def _differences(existing: Noun, requested: Noun) -> str:
    """The fields in which two structs of the same type differ, with both values if these are short."""
    parts: list[str] = []
    for name in existing.__struct_fields__:
        old, new = getattr(existing, name), getattr(requested, name)
        if isinstance(old, Noun) and old != new:
            parts.append(_differences(old, new))
        elif old != new and name not in ("history", "step_seconds", "files"):
            parts.append(f"{name} is {old}, requested {new}" if len(str(old)) < 40 else f"other {name}")
    return "; ".join(parts)
