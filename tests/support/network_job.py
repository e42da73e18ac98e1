"""`python network_job.py FRAMEWORK FOLDER EXTENT`: small networks in one framework, all results into FOLDER.

EXTENT is `brief` (one network of each family, exported at 28 px) or `whole`.

Weights, images and labels are drawn by NumPy, so every framework that runs this sees the same bytes.
"""

import importlib
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import msgspec
import numpy as np
from framework_job import Weights, drawn, transplant
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from small_networks import CLASSES, DROPPING, SMALL

from medserve import plugins, store
from medserve.empty import empty_artifact
from medserve.models import Architecture, Artifact, Recipe
from medserve.tables import ARCHITECTURES, FORMATS
from train.frameworks import Trainer, restore, save

STEPS = 5
# One of each family; `transfer_job.py` trains the other block of residual networks.
BRIEF = ("bottleneck", "efficientnet")
SIZES = (28, 64)
RATE = 0.01
RATES = np.full(STEPS, 1e-4, np.float32)
ALTERED = "layer2.0.conv2.weight"


def patches(rng: np.random.Generator, size: int, *shape: int) -> NDArray[np.uint8]:
    """Images of coarse patches, which differ more than fine noise does."""
    coarse = rng.integers(0, 256, (*shape, 8, 8, 3), np.uint8)
    return coarse.repeat(8, -3).repeat(8, -2)[..., :size, :size, :].copy()


def forms(writes: Iterable[str], size: int, extent: str) -> list[str]:
    """The formats that are tried at a size: machine code takes a compiler and its time, so it is rare."""

    def is_tried(form: str) -> bool:
        programs = plugins.literals("serve.runtimes", FORMATS[form].runtime).get("PROGRAMS", ())
        if programs and not all(map(shutil.which, programs)):
            return False
        return size == SIZES[0] and not programs if extent == "brief" else size == SIZES[0] or not programs

    return [form for form in writes if is_tried(form)]


def main(framework: str, folder: Path, extent: str) -> None:
    # The exporters look an architecture up by its name.
    ARCHITECTURES.update(SMALL)
    own = importlib.import_module(f"own_{framework}")
    trainers, exporter = (plugins.load(package, framework) for package in ("train.frameworks", "export.frameworks"))
    canonical = plugins.load("train.models.canonical", framework)
    found: dict[str, object] = {}
    rng = np.random.default_rng(2)
    images = {size: patches(rng, size, 40) for size in SIZES}
    # Few images, so that hardly an activation lies so near zero that rounding decides on which side.
    batches, labels = patches(rng, 64, STEPS, 8), rng.integers(0, CLASSES, (STEPS, 8))

    def create(architecture: Architecture, weights: Weights) -> Trainer:
        trainer: Trainer = trainers.create(architecture, CLASSES, Recipe(label_smoothing=0.0), RATES)
        return transplant(trainer, weights, folder / "given")

    for name in SMALL if extent == "whole" else BRIEF:
        architecture = SMALL[name]
        network = plugins.load(f"train.models.{architecture.family}", framework).build(architecture, CLASSES)
        fresh = canonical.read(network)
        save_file(fresh, folder / f"{name}-fresh.safetensors")
        given = drawn(fresh)
        if ALTERED in given:
            canonical.write(network, given | {ALTERED: given[ALTERED] * 1.01})
            np.savez(folder / f"{name}-altered.npz", **canonical.outputs(network, images[28][:4]))
        canonical.write(network, given)
        save_file(canonical.read(network), folder / f"{name}-returned.safetensors")
        for size in SIZES:
            np.savez(folder / f"{name}-{size}-outputs.npz", **canonical.outputs(network, images[size][:4]))
        own.steps(network, batches, labels, RATE)
        save_file(canonical.read(network), folder / f"{name}-stepped.safetensors")

        trainer = create(architecture, given)
        found[f"{name}-scores"] = trainer.predict(images[28])
        for size in SIZES:
            np.save(folder / f"{name}-{size}-scores.npy", trainer.predict(images[size]))
            for form in forms(exporter.WRITES, size, extent):
                path = folder / f"{name}-{size}-{form}" / FORMATS[form].path
                path.parent.mkdir(parents=True)
                empty = store.read_json(empty_artifact(folder, size) / "artifact.json", Artifact)
                checkpoint = msgspec.structs.replace(empty.checkpoint, architecture=name, framework=framework)
                exporter.export(checkpoint, given, form, path)
        found[f"{name}-losses"] = [trainer.step(batches[at], labels[at]) for at in range(STEPS)]

    shared: Trainer = trainers.create(SMALL["efficientnet"], CLASSES, Recipe(initial="common", seed=3), RATES)
    save_file(shared.weights(), folder / "common.safetensors")
    dense = plugins.load("train.models.resnet", framework).build(SMALL["basic"], CLASSES, hidden=6)
    canonical.write(dense, drawn(canonical.read(dense)))
    np.savez(folder / "dense-outputs.npz", **canonical.outputs(dense, images[28][:4]))

    # Of the weights of the network without drop-out: what differs is drop-out's.
    dropping = create(DROPPING, given)
    found["dropping-scores"] = dropping.predict(images[28])
    found["dropping-losses"] = [dropping.step(batches[at], labels[at]) for at in range(3)]
    found["dropping-scores-stepped"] = dropping.predict(images[28])
    (folder / "kept").mkdir()
    save(dropping, folder / "kept")
    found["dropping-on"] = dropping.step(batches[3], labels[3])
    resumed: Trainer = trainers.create(DROPPING, CLASSES, Recipe(label_smoothing=0.0), RATES)
    restore(resumed, folder / "kept")
    found["dropping-resumed"] = resumed.step(batches[3], labels[3])
    again = create(DROPPING, load_file(folder / "kept" / "weights.safetensors"))
    found["dropping-elsewhere"] = again.step(batches[3], labels[3])
    found["dropped"] = own.stochastic_depth(0.25, np.ones((4000, 2, 2, 3), np.float32))
    np.save(folder / "images-28.npy", images[28])
    np.save(folder / "images-64.npy", images[64])
    np.savez(folder / "found.npz", **{name: np.asarray(value) for name, value in found.items()})


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
