"""`python transfer_job.py FRAMEWORK FOLDER EXTENT`: small networks trained in part, all results into FOLDER.

EXTENT is `brief` (the heads of one network only) or `whole`.

Weights, images and labels are drawn by NumPy, so every framework that runs this sees the same bytes.
"""

import sys
from pathlib import Path

import msgspec
import numpy as np
from framework_job import Weights, drawn
from network_job import patches
from safetensors.numpy import save_file
from small_networks import CLASSES, DROPPING, SMALL

from medserve import plugins
from medserve.models import Recipe
from train.frameworks import InitialState, Trainer

STEPS = 3
RATES = np.full(STEPS, 1e-3, np.float32)
NETWORKS = {
    "resnet": msgspec.structs.replace(SMALL["basic"], last_stage=("layer4",)),
    # Its head drops nothing, so that what is random could only come from a part that does not learn.
    "efficientnet": msgspec.structs.replace(
        DROPPING, drop_out=0.0, head="classifier", last_stage=("features.4", "features.5")
    ),
}
CLASS_WEIGHTS = np.linspace(0.2, 1.8, CLASSES).astype(np.float32)
CASES = {
    "head": Recipe(trains="head"),
    "last-stage": Recipe(trains="last stage"),
    "dense": Recipe(trains="head", hidden=6),
    "balanced": Recipe(trains="head"),
    "labels": Recipe(trains="head"),
}
LABEL_WEIGHTS = np.linspace(0.2, 1.8, 2 * CLASSES).astype(np.float32).reshape(2, CLASSES)
WEIGHTS = {"balanced": CLASS_WEIGHTS, "labels": LABEL_WEIGHTS}
WHOLE = [(name, case) for name in NETWORKS for case in CASES]
# What the head is does not depend on the network before it.
BRIEF = [(name, case) for name, case in WHOLE if name == "resnet" or case == "last-stage"]


def main(framework: str, folder: Path, extent: str) -> None:
    create = plugins.load("train.frameworks", framework).create
    rng = np.random.default_rng(4)
    images, labels = patches(rng, 64, STEPS, 16), rng.integers(0, CLASSES, (STEPS, 16))
    several = rng.integers(0, 2, (STEPS, 16, CLASSES))
    found: dict[str, object] = {}
    fresh: dict[tuple[str, int], Weights] = {}
    for name, case in WHOLE if extent == "whole" else BRIEF:
        architecture, recipe = NETWORKS[name], CASES[case]
        if (name, recipe.hidden) not in fresh:
            fresh[name, recipe.hidden] = create(architecture, CLASSES, recipe, RATES).weights()
        weights = drawn(fresh[name, recipe.hidden])
        initial = InitialState(weights=weights, class_weights=WEIGHTS.get(case))
        task = "multi-label" if case == "labels" else "multi-class"
        trainer: Trainer = create(architecture, CLASSES, recipe, RATES, initial, task)
        save_file(trainer.weights(), folder / f"{name}-{case}-before.safetensors")
        found[f"{name}-{case}-parameters"] = trainer.parameters
        found[f"{name}-{case}-scores"] = trainer.predict(images[0])
        found[f"{name}-{case}-losses"] = [
            trainer.step(images[at], (several if case == "labels" else labels)[at]) for at in range(STEPS)
        ]
        save_file(trainer.weights(), folder / f"{name}-{case}-after.safetensors")
    found["labels"], found["several"] = labels, several
    np.savez(folder / "found.npz", **{name: np.asarray(value) for name, value in found.items()})


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
