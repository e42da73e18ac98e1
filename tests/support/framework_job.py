"""`python framework_job.py FRAMEWORK FOLDER`: the same small trainings in one framework, all results into FOLDER.

Weights, images and labels are drawn by NumPy, so every framework that runs this sees the same bytes.
"""

import sys
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from medserve import plugins
from medserve.errors import BadInput
from medserve.models import Recipe, Task
from medserve.tables import ARCHITECTURES
from train.frameworks import RANDOM, InitialState, Trainer, restore, save

ARCHITECTURE = ARCHITECTURES["cnn"]
CLASSES = 8
STEPS = 5
RATES = np.array([1.2e-4, 1e-3, 3e-3, 2e-3, 5e-4, 1e-4], np.float32)
GENTLE_RATES = np.full(STEPS, 1e-5, np.float32)
Weights = dict[str, NDArray[np.float32]]


def drawn(fresh: Weights, head: float = 0.05) -> Weights:
    """Weights of the network's names and shapes with nothing at its initial value; `head` is the deviation of fc's."""
    rng = np.random.default_rng(1)
    weights = {}
    for name in sorted(fresh):
        value = rng.standard_normal(fresh[name].shape).astype(np.float32)
        if value.ndim > 1:
            value *= head if name.startswith("fc.") else np.sqrt(2.0 / (value[0].size))
        elif (fresh[name] == 1.0).all():  # batch norm's weights and running variances
            value = rng.uniform(0.5, 1.5, value.shape).astype(np.float32)
        else:
            value *= 0.1
        weights[name] = value.astype(np.float32)
    return weights


def transplant(trainer: Trainer, weights: Weights, folder: Path) -> Trainer:
    """Give a trainer other weights as the loop saves and restores it."""
    folder.mkdir(exist_ok=True)
    save(trainer, folder)
    save_file(weights, folder / "weights.safetensors")
    restore(trainer, folder)
    return trainer


def main(framework: str, folder: Path) -> None:
    module = plugins.load("train.frameworks", framework)
    found: dict[str, object] = {}

    def create(
        rates: NDArray[np.float32] = RATES, initial: InitialState = RANDOM, task: Task = "multi-class", **recipe: float
    ) -> Trainer:
        trainer: Trainer = module.create(ARCHITECTURE, CLASSES, msgspec.convert(recipe, Recipe), rates, initial, task)
        return trainer

    def saved(trainer: Trainer, name: str) -> Weights:
        (folder / name).mkdir()
        save(trainer, folder / name)
        return load_file(folder / name / "weights.safetensors")

    rng = np.random.default_rng(2)
    # Coarse patches, so that images differ: batch norm would blow up the small differences of fine noise. Few, small
    # images, so that hardly an activation lies so near zero that rounding decides on which side.
    patches = rng.integers(0, 256, (STEPS + 1, 16, 4, 4, 3), np.uint8)
    images = patches.repeat(2, 2).repeat(2, 3)
    labels = rng.integers(0, CLASSES, (STEPS + 1, 16))

    trainer = create()
    found["parameters"] = trainer.parameters
    fresh = saved(trainer, "fresh")
    saved(create(), "fresh-again")
    saved(create(seed=1), "fresh-other")

    transplant(trainer, drawn(fresh), folder / "given")
    saved(trainer, "returned")
    found["scores"] = trainer.predict(images[0])
    # 28 and 27: every pooling meets an odd size in one of them or in the other.
    for size in (28, 27):
        found[f"scores_{size}"] = trainer.predict(rng.integers(0, 256, (3, size, size, 3), np.uint8))
    found["scores_one"] = trainer.predict(images[0][:1])

    found["losses"] = [trainer.step(images[at], labels[at]) for at in range(STEPS)]
    saved(trainer, "stepped")
    found["scores_stepped"] = trainer.predict(images[STEPS])
    found["loss_on"] = trainer.step(images[STEPS], labels[STEPS])
    saved(trainer, "on")

    resumed = create(seed=1)
    restore(resumed, folder / "stepped")
    found["loss_resumed"] = resumed.step(images[STEPS], labels[STEPS])
    saved(resumed, "resumed")

    # One step on so few pixels that the biased and the unbiased variance of a batch lie far apart.
    few = transplant(create(), drawn(fresh), folder / "given-few")
    found["loss_few"] = few.step(images[0][:4, :8, :8].copy(), labels[0][:4])
    saved(few, "few")

    # A head so small that the gradients behind it are near Adam's epsilon: there its place shows, and the steps depend
    # smoothly on the gradients. Away from there a step is the sign of its gradient, and rounding turns some of them.
    gentle = transplant(create(GENTLE_RATES, weight_decay=1.0), drawn(fresh, head=1e-6), folder / "given-gentle")
    found["losses_gentle"] = [gentle.step(images[at], labels[at]) for at in range(STEPS)]
    saved(gentle, "gentle")

    # Several labels per image, rare and frequent ones weighed alike: in many images none applies, or several do.
    several = (rng.random((STEPS, 16, CLASSES)) < np.linspace(0.05, 0.6, CLASSES)).astype(np.int64)
    weighed = InitialState(class_weights=np.linspace(0.2, 3, 2 * CLASSES).astype(np.float32).reshape(2, CLASSES))
    labelling = create(GENTLE_RATES, initial=weighed, task="multi-label", weight_decay=1.0)
    transplant(labelling, drawn(fresh, head=1e-6), folder / "given-labelling")
    found["losses_labelling"] = [labelling.step(images[at], several[at]) for at in range(STEPS)]
    saved(labelling, "labelling")
    found["scores_labelling"] = transplant(labelling, drawn(fresh), folder / "given-labels").predict(images[0])

    broken = drawn(fresh)
    del broken["fc.bias"]
    broken["fc.weight"] = broken["fc.weight"].T.copy()
    try:
        transplant(trainer, broken, folder / "given-broken")
        found["refusal"] = "none"
    except BadInput as error:
        found["refusal"] = str(error)
    np.savez(folder / "found.npz", **{name: np.asarray(value) for name, value in found.items()})


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
