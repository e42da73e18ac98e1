"""The certificate: an artifact's scores on the whole test split against the trainer's.

Runs in a process of its own (`python -m export.verify`), so that the runtime under proof shares nothing with the
framework that exported it.
"""

import os
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from export import lossy
from medserve import errors, machine, plugins, store
from medserve.spec import Certificate, Deployment, Device, Precision
from medserve.tables import FORMATS, scores_file
from serve.runtimes import load_runtime, predict

LIMIT = 1e-4
TIE_MARGIN = 2e-4
LOG_FLOOR = 1e-6
BATCH = 256
SINGLES = 32


def compare(
    scores: NDArray[np.float32],
    reference: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    runtime: str,
    versions: dict[str, str],
) -> Certificate:
    """The certificate of a float32 artifact.

    `scores` and `reference` are float32 (N, classes) probabilities, `labels` int64 (N,). Valid when the largest
    |difference| is at most 1e-4 and no decision changes where the reference's two best are more than 2e-4 apart.
    """
    if scores.shape != reference.shape:
        scores = np.full(reference.shape, np.nan, np.float32)
    max_abs = _largest(scores.astype(np.float64) - reference)
    max_log_abs = _largest(np.log(np.maximum(scores, LOG_FLOOR)) - np.log(np.maximum(reference, LOG_FLOOR)))
    best = np.sort(reference, 1)
    clear = best[:, -1] - best[:, -2] > TIE_MARGIN
    changed = int((clear & (scores.argmax(1) != reference.argmax(1))).sum())
    reason = None
    if max_abs is None:
        reason = "the scores are not finite, or not of the trainer's shape"
    elif max_abs > LIMIT:
        reason = f"largest |difference of probabilities| is {max_abs:.2e}; the limit is {LIMIT:.0e}"
    elif changed:
        reason = f"{changed} decisions changed"
    return Certificate(
        runtime=runtime,
        images=len(reference),
        max_abs=max_abs,
        max_log_abs=max_log_abs,
        decisions_changed=changed,
        near_ties=int((~clear).sum()),
        accuracy=float((scores.argmax(1) == labels).mean()),
        limit_abs=LIMIT,
        tie_margin=TIE_MARGIN,
        kind="float32",
        valid=reason is None,
        reason=reason,
        versions=versions,
    )


def _largest(gap: NDArray[np.floating]) -> float | None:
    return float(np.abs(gap).max()) if np.isfinite(gap).all() else None


def unproven(images: int, runtime: str, reason: str) -> Certificate:
    """The certificate of a runtime that has computed nothing, and why."""
    return Certificate(
        runtime=runtime,
        images=images,
        max_abs=None,
        max_log_abs=None,
        decisions_changed=0,
        near_ties=0,
        accuracy=0.0,
        limit_abs=LIMIT,
        tie_margin=TIE_MARGIN,
        kind="float32",
        valid=False,
        reason=reason,
        versions={},
    )


def scores_of(
    folder: Path, form: str, classes: int, images: NDArray[np.uint8], runtime: str | None = None
) -> NDArray[np.float32]:
    """Scores of the model in `folder` through a runtime (its format's own), in batches of 256 and the first 32 singly.

    Both batch sizes must be the trainer's function, so the single ones replace theirs in the result.
    """
    runtime = runtime or FORMATS[form].runtime
    device: Device = "cuda" if plugins.literals("serve.runtimes", runtime).get("DEVICES") == ("cuda",) else "cpu"
    deployment = Deployment(
        artifact=folder.name,
        runtime=runtime,
        device=device,
        threads=os.cpu_count() or 1,
        batch_sizes=(1, BATCH),
    )
    height, width, channels = images.shape[1:]
    loaded = load_runtime(folder, form, classes, (height, width, channels), deployment)
    parts = [
        predict(loaded, np.ascontiguousarray(images[at : at + BATCH]), deployment.batch_sizes)
        for at in range(0, len(images), BATCH)
    ]
    scores = np.concatenate(parts)
    for index in range(min(SINGLES, len(images))):
        scores[index] = predict(loaded, np.ascontiguousarray(images[index : index + 1]), deployment.batch_sizes)[0]
    return scores


def certify(
    folder: Annotated[Path, typer.Argument(help="Folder with the exported model.")],
    checkpoint: Annotated[Path, typer.Argument(help="Folder of the checkpoint that it must equal.")],
    data: Annotated[Path, typer.Argument(help="Folder of the unpacked data set.")],
    form: Annotated[str, typer.Option("--format", help="Format of the exported model.")],
    runtime: Annotated[str, typer.Option(help="Runtime that is proven.")],
    precision: Annotated[Precision, typer.Option(help="Precision of the exported model.")],
) -> None:
    """Write `certificate.json` and the scores that it is about into FOLDER."""
    reference = np.load(checkpoint / "test_scores.npy")
    images = np.load(data / "test_images.npy", mmap_mode="r")
    labels = np.load(data / "test_labels.npy")
    scores = scores_of(folder, form, reference.shape[1], images, runtime)
    certificate = compare(scores, reference, labels, runtime=runtime, versions=machine.versions())
    if precision != "float32":
        certificate = lossy.relax(certificate, scores, reference, labels)
    np.save(folder / scores_file(form, runtime), scores)
    store.write_json(folder / "certificate.json", certificate)


if __name__ == "__main__":
    errors.main(lambda: typer.run(certify))
