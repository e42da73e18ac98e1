"""`python full_width_job.py FRAMEWORK ARCHITECTURE FOLDER STEP`: a network at full width and 224 px in one framework.

STEP is `scores`, or a format: scores and exports go into FOLDER. Each is a process of its own, as in `medserve export`,
for the next would need the memory that one leaves. Weights, images and the scores in float64 lie beside FOLDER;
PyTorch, which is asked first, makes them.
"""

import sys
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from medserve import plugins, store
from medserve.empty import empty_artifact
from medserve.models import Architecture, Artifact, Recipe
from medserve.tables import ARCHITECTURES, FORMATS
from train.frameworks import InitialState

SIZE = 224
CLASSES = 8
IMAGES = 12


def draw(architecture: Architecture, images: NDArray[np.uint8], folder: Path) -> None:
    """Initial weights with the statistics of `images`, so that signals keep their size through a hundred layers.

    Where two frameworks round, their errors add up: 3.5e-5 and 5.1e-5 for ResNet-50. So each is compared with float64.
    """
    import torch

    torch.manual_seed(0)
    network = plugins.load(f"train.models.{architecture.family}", "pytorch").build(architecture, CLASSES)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the plain mean of what it sees
        elif isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with torch.inference_mode():
        network(torch.from_numpy(images))
        logits = network.eval()(torch.from_numpy(images)).numpy()
    weights = plugins.load("train.models.canonical", "pytorch").read(network)
    # A head that tells the images apart, as a trained one does: logits of mean 0 and deviation 1.
    (head,) = (name for name, value in weights.items() if value.ndim == 2)
    spread = logits.std(0).mean()
    weights[head] /= spread
    weights[head.replace("weight", "bias")] = -logits.mean(0) / spread
    save_file(weights, folder / "weights.safetensors")
    plugins.load("train.models.canonical", "pytorch").write(network, weights)
    with torch.inference_mode():
        exact = network.double()(torch.from_numpy(images)).softmax(1).numpy()
    np.save(folder / "images.npy", images)
    np.save(folder / "exact.npy", exact.astype(np.float32))


def score(framework: str, name: str, folder: Path) -> None:
    architecture = ARCHITECTURES[name]
    coarse = np.random.default_rng(3).integers(0, 256, (IMAGES, SIZE // 8, SIZE // 8, 3), np.uint8)
    images = np.ascontiguousarray(coarse.repeat(8, 1).repeat(8, 2))
    given = folder.with_name("weights.safetensors")
    if not given.is_file():
        draw(architecture, images, folder.parent)
    weights = load_file(given)
    create = plugins.load("train.frameworks", framework).create
    trainer = create(architecture, CLASSES, Recipe(), np.zeros(1, np.float32), InitialState(weights=weights))
    np.save(folder / "scores.npy", trainer.predict(images))


def export(framework: str, name: str, folder: Path, form: str) -> None:
    weights = load_file(folder.with_name("weights.safetensors"))
    empty = store.read_json(empty_artifact(folder, SIZE) / "artifact.json", Artifact)
    checkpoint = msgspec.structs.replace(empty.checkpoint, architecture=name, framework=framework)
    path = folder / form / FORMATS[form].path
    path.parent.mkdir(parents=True)
    plugins.load("export.frameworks", framework).export(checkpoint, weights, form, path)


if __name__ == "__main__":
    if sys.argv[4] == "scores":
        score(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    else:
        export(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4])
