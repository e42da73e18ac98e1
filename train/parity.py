"""Whether the frameworks compute one function: a checkpoint opened in each of them, layer by layer and score by score.

`python -m train.parity CHECKPOINT FRAMEWORK OUT` opens it in one framework, in a process of its own.
"""

import tempfile
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import typer
from numpy.typing import NDArray
from safetensors.numpy import load_file

from medserve import errors, machine, plugins, stage, store
from medserve.certificate import compare
from medserve.errors import BadInput
from medserve.spec import Certificate, Checkpoint
from medserve.tables import ARCHITECTURES, pick
from train import data, loop
from train.archives import say
from train.frameworks import Begin

LIMIT = 1e-4
"""Outputs agree when they differ by at most this much and this share of their size."""
IMAGES = 8
"""So many have their layers compared: enough for every layer to do its work, few enough for memory at 224 px."""

Outputs = dict[str, NDArray[np.float32]]


class Opened(msgspec.Struct, frozen=True):
    """A checkpoint in one framework: its scores on the test split against the trainer's, its layers against theirs.

    `divergence` names the first layer that differs from the one in the framework that trained it, null where none does;
    `logits` is the largest |difference| of logits as a share of the one that is allowed, 1e-4 + 1e-4 |logit|.
    """

    framework: str
    layers: int
    divergence: str | None
    logits: float
    certificate: Certificate

    @property
    def reason(self) -> str | None:
        """Why it is not the trainer's function, null where it is."""
        if self.divergence is not None:
            return f"first layer to differ: {self.divergence}"
        # Written so that what is not a number disagrees.
        if not self.logits <= 1.0:
            return f"logits differ by {self.logits:.2g} times what is allowed"
        return self.certificate.reason


def open_everywhere(folder: Path, frameworks: list[str]) -> list[Opened]:
    """Open a checkpoint in `frameworks`, each in a process of its own. The one that trained it comes first.

    Raises BadInput when `folder` is no checkpoint or its data set is another one, CannotRun when a framework cannot.
    """
    checkpoint = store.read_checkpoint(folder)
    trained_in = checkpoint.framework
    with tempfile.TemporaryDirectory() as temporary:
        found: dict[str, tuple[Outputs, NDArray[np.float32]]] = {}
        for framework in dict.fromkeys((trained_in, *frameworks)):
            out = Path(temporary) / framework
            out.mkdir()
            say(f"opens {checkpoint.name} in {framework}")
            stage.ask(["-m", "train.parity", str(folder.resolve()), framework, str(out)])
            with np.load(out / "layers.npz") as layers:
                found[framework] = dict(layers), np.load(out / "scores.npy")
    reference, labels = (np.load(folder / f"test_{kind}.npy") for kind in ("scores", "labels"))
    expected, _ = found[trained_in]
    return [
        Opened(
            framework=framework,
            layers=len(layers),
            divergence=divergence(expected, layers),
            logits=_share(expected, layers),
            certificate=compare(scores, reference, labels, runtime=framework, versions=machine.versions()),
        )
        for framework, (layers, scores) in found.items()
    ]


def line(opened: Opened) -> str:
    """What came of opening a checkpoint in one framework, for a reader."""
    proof = opened.certificate
    error = "not finite" if proof.max_abs is None else f"{proof.max_abs:.1e}"
    auc = "undefined" if proof.auc is None else f"{proof.auc:.4f}"
    return (
        f"{opened.framework:<10}  largest |difference| {error} on {proof.images} test images, "
        f"{proof.decisions_changed} decisions changed, accuracy {proof.accuracy:.4f}, AUC {auc}; "
        f"logits at {opened.logits:.2f} of the limit; {opened.divergence or f'{opened.layers} layers agree'}"
    )


def divergence(reference: Outputs, found: Outputs) -> str | None:
    """The first layer, in the order of `reference`, that is missing, has another shape or another output.

    Both map a layer's canonical name to its float32 output. None when all agree. The size is the layer's largest
    |output|: where a sum nearly cancels, its rounding is that of what it was taken of.
    """
    for name, expected in reference.items():
        if name not in found:
            return f"{name}: missing"
        if found[name].shape != expected.shape:
            return f"{name}: shape {found[name].shape}, expected {expected.shape}"
        gap = np.abs(found[name] - expected)
        # Written so that what is not a number disagrees.
        if not gap.max() <= LIMIT + LIMIT * np.abs(expected).max():
            where = np.unravel_index(np.argmax(np.nan_to_num(gap, nan=np.inf)), gap.shape)
            place = ", ".join(map(str, where))
            return f"{name}: {found[name][where]:.6g} at [{place}], expected {expected[where]:.6g}"
    return None


def _share(reference: Outputs, found: Outputs) -> float:
    """See `Opened.logits`; the logits are the last layer's output."""
    name = list(reference)[-1]
    expected, logits = reference[name], found.get(name)
    if logits is None or logits.shape != expected.shape or not np.isfinite(logits).all():
        return float("inf")
    return float((np.abs(logits - expected) / (LIMIT + LIMIT * np.abs(expected))).max())


def open_in(
    folder: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Folder of a trained checkpoint.")],
    framework: Annotated[str, typer.Argument(metavar="FRAMEWORK", help="A file of train/frameworks.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for what it computes.")],
) -> None:
    """Write `layers.npz`, the outputs of its layers for a few test images, and `scores.npy` of the whole test split."""
    checkpoint = store.read_checkpoint(folder)
    images = _images(checkpoint)
    weights = load_file(folder / "weights.safetensors")
    architecture = pick(ARCHITECTURES, "architecture", checkpoint.architecture)
    recipe, classes = checkpoint.recipe, len(checkpoint.classes)
    network = plugins.load(f"train.models.{architecture.family}", framework).build(
        architecture, classes, hidden=recipe.hidden
    )
    canonical = plugins.load("train.models.canonical", framework)
    canonical.write(network, weights)
    spread = np.linspace(0, len(images.labels("test")) - 1, IMAGES).astype(int)
    np.savez(out / "layers.npz", **canonical.outputs(network, images.take("test", spread)))
    del network
    trainer = plugins.load("train.frameworks", framework).create(
        architecture, classes, recipe, np.zeros(1, np.float32), Begin(weights=weights)
    )
    np.save(out / "scores.npy", loop.predict(trainer, images, "test", recipe.batch))


def _images(checkpoint: Checkpoint) -> data.Dataset:
    images = data.open_dataset(checkpoint.dataset, checkpoint.size, unofficial=checkpoint.unofficial)
    if images.digest != checkpoint.data_digest:
        raise BadInput(
            f"{checkpoint.dataset} at {checkpoint.size} px is not the data that {checkpoint.name} was trained on; "
            "train it again"
        )
    return images


if __name__ == "__main__":
    errors.main(lambda: typer.run(open_in))
