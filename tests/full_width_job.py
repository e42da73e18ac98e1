"""`python full_width_job.py FRAMEWORK ARCHITECTURE FOLDER`: a network at full width and 224 px in one framework.

Its scores and exports go into FOLDER; weights and images lie beside it, and PyTorch, which is asked first, draws them.
"""

import sys
from pathlib import Path

import msgspec
import numpy as np
from network_job import patches
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from medserve import plugins, store
from medserve.empty import empty_artifact
from medserve.spec import Architecture, Artifact, Recipe
from medserve.tables import ARCHITECTURES, FORMATS
from train.frameworks import Begin

SIZE = 224
CLASSES = 8
IMAGES = 12


def draw(architecture: Architecture, images: NDArray[np.uint8], path: Path) -> None:
    """Initial weights with the statistics of `images`, so that signals keep their size through a hundred layers."""
    import torch

    network = plugins.load(f"train.models.{architecture.family}", "pytorch").build(architecture, CLASSES)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the plain mean of what it sees
        elif isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with torch.inference_mode():
        network(torch.from_numpy(images))
    weights = plugins.load("train.models.canonical", "pytorch").read(network)
    # A head as wide as a trained one, for logits that differ.
    save_file({name: value * (10.0 if value.ndim == 2 else 1.0) for name, value in weights.items()}, path)


def main(framework: str, name: str, folder: Path) -> None:
    architecture = ARCHITECTURES[name]
    images = patches(np.random.default_rng(3), SIZE, IMAGES)
    given = folder.with_name("weights.safetensors")
    if not given.is_file():
        draw(architecture, images, given)
        np.save(folder.with_name("images.npy"), images)
    weights = load_file(given)
    create = plugins.load("train.frameworks", framework).create
    trainer = create(architecture, CLASSES, Recipe(), np.zeros(1, np.float32), Begin(weights=weights))
    np.save(folder / "scores.npy", trainer.predict(images))
    del trainer
    exporter = plugins.load("export.frameworks", framework)
    empty = store.read_json(empty_artifact(folder, SIZE) / "artifact.json", Artifact)
    checkpoint = msgspec.structs.replace(empty.checkpoint, architecture=name, framework=framework)
    for form in exporter.WRITES:
        path = folder / form / FORMATS[form].path
        path.parent.mkdir(parents=True)
        exporter.export(checkpoint, weights, form, path)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
