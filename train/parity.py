"""Whether all frameworks compute the same function: the layers and scores of a checkpoint, compared between frameworks.

`python -m train.parity CHECKPOINT FRAMEWORK OUT` computes them in one framework, in a process of its own.
"""

import tempfile
from pathlib import Path

import msgspec
import numpy as np
import typer
from numpy.typing import NDArray
from safetensors.numpy import load_file

from medserve import errors, machine, plugins, stage, store
from medserve.certificate import compare
from medserve.errors import BadInput
from medserve.models import Certificate
from medserve.tables import ARCHITECTURES, pick
from train import data, loop
from train.archives import say
from train.frameworks import InitialState, build

LIMIT = 1e-4
"""Outputs agree when they differ by at most this value plus this share of their size."""
IMAGES = 8
"""Test images whose layer outputs are compared; those of 8 images fit into memory at 224 px."""

Outputs = dict[str, NDArray[np.float32]]


class ParityResult(msgspec.Struct, frozen=True):
    """A checkpoint in one framework compared with the framework that trained it: test scores and layer outputs.

    `layers` counts the layers, `divergence` describes the first one that differs, null if all agree. `logits` is the
    largest |difference| of logits as a share of the allowed one, 1e-4 + 1e-4 |logit|.
    """

    framework: str
    layers: int
    divergence: str | None
    logits: float
    certificate: Certificate

    @property
    def reason(self) -> str | None:
        """Why this framework computes another function, null if it computes the same."""
        if self.divergence is not None:
            return f"first layer to differ: {self.divergence}"
        # Negated, so that NaN counts as different.
        if not self.logits <= 1.0:
            return f"logits differ by {self.logits:.2g} times the allowed difference"
        return self.certificate.reason


def compare_frameworks(folder: Path, frameworks: list[str]) -> list[ParityResult]:
    """Compare a checkpoint in `frameworks`, each in a process of its own; first the framework that trained it.

    Raises BadInput if `folder` is not a checkpoint or its data set has changed, CannotRun if a framework fails.
    """
    checkpoint = store.read_checkpoint(folder)
    trained_in = checkpoint.framework
    with tempfile.TemporaryDirectory() as temporary:
        results: dict[str, tuple[Outputs, NDArray[np.float32]]] = {}
        for framework in dict.fromkeys((trained_in, *frameworks)):
            out = Path(temporary) / framework
            out.mkdir()
            say(f"loading {checkpoint.name} in {framework}")
            stage.ask(["-m", "train.parity", str(folder.resolve()), framework, str(out)])
            with np.load(out / "layers.npz") as layers:
                results[framework] = dict(layers), np.load(out / "scores.npy")
    reference, labels = (np.load(folder / f"test_{kind}.npy") for kind in ("scores", "labels"))
    expected, _ = results[trained_in]
    return [
        ParityResult(
            framework=framework,
            layers=len(layers),
            divergence=divergence(expected, layers),
            logits=_logits_share(expected, layers),
            certificate=compare(
                scores, reference, labels, task=checkpoint.task, runtime=framework, versions=machine.versions()
            ),
        )
        for framework, (layers, scores) in results.items()
    ]


def describe(result: ParityResult) -> str:
    """A parity result as one line of text."""
    certificate = result.certificate
    error = "not finite" if certificate.max_abs is None else f"{certificate.max_abs:.1e}"
    auc = "undefined" if certificate.auc is None else f"{certificate.auc:.4f}"
    return (
        f"{result.framework:<10}  largest |difference| {error} on {certificate.images} test images, "
        f"{certificate.decisions_changed} decisions changed, accuracy {certificate.accuracy:.4f}, AUC {auc}; "
        f"logits at {result.logits:.2f} of the limit; {result.divergence or f'{result.layers} layers agree'}"
    )


def divergence(reference: Outputs, outputs: Outputs) -> str | None:
    """The first layer, in the order of `reference`, that is missing, has another shape or another output; None if none.

    Both map a layer's canonical name to its float32 output. The allowed difference is relative to the largest |output|
    of the layer, because the rounding error of a sum depends on the size of its terms, even if they nearly cancel.
    """
    for name, expected in reference.items():
        if name not in outputs:
            return f"{name}: missing"
        output = outputs[name]
        if output.shape != expected.shape:
            return f"{name}: shape {output.shape}, expected {expected.shape}"
        gap = np.abs(output - expected)
        # Negated, so that NaN counts as different.
        if not gap.max() <= LIMIT + LIMIT * np.abs(expected).max():
            where = np.unravel_index(np.argmax(np.nan_to_num(gap, nan=np.inf)), gap.shape)
            place = ", ".join(map(str, where))
            return f"{name}: {output[where]:.6g} at [{place}], expected {expected[where]:.6g}"
    return None


def _logits_share(reference: Outputs, outputs: Outputs) -> float:
    """See `ParityResult.logits`. The logits are the output of the last layer."""
    name = list(reference)[-1]
    expected, logits = reference[name], outputs.get(name)
    if logits is None or logits.shape != expected.shape or not np.isfinite(logits).all():
        return float("inf")
    return float((np.abs(logits - expected) / (LIMIT + LIMIT * np.abs(expected))).max())


def compute(folder: Path, framework: str, out: Path) -> None:
    """Write layer outputs and scores of the checkpoint in FOLDER, as FRAMEWORK computes them, into OUT.

    `layers.npz` holds the layer outputs for a few test images, `scores.npy` the scores of the test split.
    """
    checkpoint = store.read_checkpoint(folder)
    images = data.open_dataset(
        checkpoint.unpacked or checkpoint.dataset, checkpoint.size, unofficial=checkpoint.unofficial
    )
    if images.digest != checkpoint.data_digest:
        raise BadInput(
            f"{checkpoint.dataset} at {checkpoint.size} px is not the data that {checkpoint.name} was trained on; "
            "train it again"
        )
    initial = InitialState(weights=load_file(folder / "weights.safetensors"))
    inputs = (
        pick(ARCHITECTURES, "architecture", checkpoint.architecture).for_channels(checkpoint.channels),
        len(checkpoint.classes),
        checkpoint.recipe,
    )
    network, canonical = build(framework, *inputs, initial)
    spread = np.linspace(0, len(images.labels("test")) - 1, IMAGES).astype(int)
    np.savez(out / "layers.npz", **canonical.outputs(network, images.take("test", spread)))
    del network
    trainer = plugins.load("train.frameworks", framework).create(
        *inputs, np.zeros(1, np.float32), initial, checkpoint.task
    )
    np.save(out / "scores.npy", loop.predict(trainer, images, "test", checkpoint.recipe.batch))


if __name__ == "__main__":
    errors.main(lambda: typer.run(compute))
