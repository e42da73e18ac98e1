"""Certifies an artifact: compares its scores on the whole test split with the trainer's.

In float32 every score has a limit; in a reduced precision the accuracy has one.

Runs in a process of its own (`python -m export.verify`), so that the runtime shares nothing with the
framework that exported it.
"""

import os
from pathlib import Path

import msgspec
import numpy as np
import typer
from numpy.typing import NDArray

from medserve import errors, machine, plugins, store
from medserve.certificate import LIMIT, LOSS, compare, subject
from medserve.models import Certificate, Checkpoint, Golden
from medserve.scores import paired_change, shares_right
from medserve.spec import Deployment, Device, Precision
from medserve.tables import FORMATS, scores_file
from serve.runtimes import load_runtime, predict

BATCH = 256
SINGLES = 32
QUANTILE = 1.96
"""The two-sided 95 % quantile of the standard normal distribution."""


def scores_of(
    folder: Path,
    form: str,
    classes: int,
    images: NDArray[np.uint8],
    runtime: str | None = None,
    device: Device = "cpu",
    precision: Precision = "float32",
) -> NDArray[np.float32]:
    """Scores of the model in `folder` through a runtime (its format's own), in batches of 256 and the first 32 singly.

    Both batch sizes must be the trainer's function, so the single ones replace theirs in the result.
    """
    runtime = runtime or FORMATS[form].runtime
    batch = min(BATCH, len(images))
    deployment = Deployment(
        artifact=folder.name,
        runtime=runtime,
        device=device_of(runtime, device),
        threads=os.cpu_count() or 1,
        batch_sizes=(1, batch),
        precision=precision,
    )
    height, width, channels = images.shape[1:]
    loaded = load_runtime(folder, form, classes, (height, width, channels), deployment)
    parts = [
        predict(loaded, np.ascontiguousarray(images[at : at + batch]), deployment.batch_sizes)
        for at in range(0, len(images), batch)
    ]
    scores = np.concatenate(parts)
    for index in range(min(SINGLES, len(images))):
        scores[index] = predict(loaded, np.ascontiguousarray(images[index : index + 1]), deployment.batch_sizes)[0]
    return scores


def device_of(runtime: str, device: Device) -> Device:
    """Where a runtime is certified: on the device that is asked for, or the only one that it has."""
    return "cuda" if plugins.literals("serve.runtimes", runtime).get("DEVICES") == ("cuda",) else device


def certify(
    folder: Path,
    checkpoint: Path,
    data: Path,
    form: str,
    runtime: str,
    precision: Precision,
    golden: Golden,
    device: Device,
) -> None:
    """Write `certificate.json` and the scores that it certifies into FOLDER, which has an exported model.

    CHECKPOINT is the folder of the checkpoint that the model must equal, DATA the folder of the unpacked data set. The
    model, of format FORM and a precision, runs in RUNTIME on a device; GOLDEN says where its golden images are from.
    """
    trained = store.read_json(checkpoint / "checkpoint.json", Checkpoint)
    reference = np.load(checkpoint / "test_scores.npy")
    images = np.load(data / "test_images.npy", mmap_mode="r")
    known = data / "test_labels.npy"
    labels = np.load(known) if known.is_file() else None
    scores = scores_of(folder, form, reference.shape[1], images, runtime, device, precision)
    certificate = compare(scores, reference, labels, task=trained.task, runtime=runtime, versions=machine.versions())
    if precision != "float32" and labels is not None:
        certificate = relax(certificate, scores, reference, labels)
    if golden == "drawn":
        with np.load(folder / "golden.npz") as drawn:
            found = scores_of(folder, form, reference.shape[1], drawn["images"], runtime, device, precision)
            certificate = add_golden(certificate, float(np.abs(found - drawn["scores"]).max()))
    # With them the certificate can be derived again, and artifacts can be compared with one another.
    np.save(folder / scores_file(form, runtime), scores)
    files = store.digests(folder, without="certificate.json")
    made_of = subject(trained, form, precision, golden, runtime, files)
    certificate = msgspec.structs.replace(certificate, subject=made_of, device=device_of(runtime, device))
    store.write_json(folder / "certificate.json", certificate)


def add_golden(certificate: Certificate, error: float) -> Certificate:
    """With the largest |difference| on drawn golden images, where a float32 model must keep the same limit."""
    if not np.isfinite(error):
        reason = "the scores of the golden images are not finite"
        return msgspec.structs.replace(certificate, valid=False, reason=certificate.reason or reason)
    certificate = msgspec.structs.replace(certificate, golden_max_abs=error)
    if certificate.valid and certificate.kind == "float32" and error > LIMIT:
        reason = f"largest |difference of probabilities| on the golden images is {error:.2e}; the limit is {LIMIT:.0e}"
        return msgspec.structs.replace(certificate, valid=False, reason=reason)
    return certificate


def relax(
    exact: Certificate, scores: NDArray[np.float32], reference: NDArray[np.float32], labels: NDArray[np.int64]
) -> Certificate:
    """A float32 certificate as one of reduced precision, valid when accuracy falls by less than 1 pp.

    That is with 95 % confidence, by the lower bound of `paired_change`.
    Shapes are those of `compare`. Errors and changed decisions stay in it.
    """
    if exact.max_abs is None:
        return msgspec.structs.replace(exact, kind="lossy", limit_abs=None)
    change, error = paired_change(shares_right(labels, scores), shares_right(labels, reference))
    low, high = change - QUANTILE * error, change + QUANTILE * error
    reason = None
    if low <= -LOSS:
        reason = f"95 % interval of the change of accuracy [{low:.4f}, {high:.4f}]; it must lie above -{LOSS}"
    return msgspec.structs.replace(
        exact, kind="lossy", limit_abs=None, accuracy_change=(low, high), valid=reason is None, reason=reason
    )


if __name__ == "__main__":
    errors.main(lambda: typer.run(certify))
