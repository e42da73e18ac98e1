"""Writes the artifact of a model that was made elsewhere, and has it certified against the scores of its own file."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from export.adopt._images import Given
from export.artifact import complete
from medserve import process, store
from medserve.errors import BadInput
from medserve.models import Adopted, Artifact, Checkpoint, Golden, Recipe, Scores, Task
from medserve.scores import score, shares_right
from medserve.spec import Window
from medserve.study import ADOPTED
from medserve.tables import DATASETS, FORMATS


class Made(NamedTuple):
    """What is known of a model: where it is from, what it gives for which images, and which of them are shown.

    `images` is what was asked for, `window` how its files were read, `scores` float32 (N, classes) of the file itself,
    `shown` golden images with theirs.
    """

    source: Adopted
    parameters: int
    given: Given
    scores: NDArray[np.float32]
    names: tuple[str, ...]
    task: Task
    images: str | None
    window: Window | None
    golden: Golden
    shown: tuple[NDArray[np.uint8], NDArray[np.float32]]


def write(out: Path, made: Made, form: str, further: list[str], write_model: Callable[[Path], None]) -> Artifact:
    """Write the artifact `out`; `write_model` writes the model's file."""
    with store.new_folder(out) as partial, TemporaryDirectory() as scratch:
        path = partial / FORMATS[form].path
        path.parent.mkdir()
        with process.quiet():
            write_model(path)
        np.savez(partial / "golden.npz", images=made.shown[0], scores=made.shown[1])
        np.save(partial / "reference.npy", made.scores)
        data, home = Path(scratch) / "data", Path(scratch) / "checkpoint"
        data.mkdir()
        home.mkdir()
        np.save(data / "test_images.npy", made.given.images)
        np.save(home / "test_scores.npy", made.scores)
        if made.given.labels is not None:
            for labels in (data / "test_labels.npy", home / "test_labels.npy", partial / "labels.npy"):
                np.save(labels, made.given.labels)
        checkpoint = _checkpoint(out.name, made, store.digests(home, without="checkpoint.json"))
        store.write_json(home / "checkpoint.json", checkpoint)
        return complete(
            partial,
            out.name,
            form,
            checkpoint,
            home=home,
            data=data,
            further=further,
            golden=made.golden,
            adopted=made.source,
        )


def _checkpoint(name: str, made: Made, files: dict[str, str]) -> Checkpoint:
    """The manifest of what was not trained here: a network that is known by its scores alone."""
    labels, scores, contract = made.given.labels, made.scores, made.source.contract
    try:
        test = None if labels is None else score(labels, scores)
    except BadInput:  # a class without an image has no AUC
        assert labels is not None
        right = float(shares_right(labels, scores).mean())
        test = Scores(accuracy=right, balanced_accuracy=None, auc=None, images=len(scores))
    # Accuracies on other images, or by other labels, are not comparable.
    known = b"" if labels is None else labels.tobytes()
    digest = hashlib.sha256(made.given.images.tobytes() + known).hexdigest()
    own = made.images if made.images in DATASETS else f"own-{digest[:8]}"
    return Checkpoint(
        name=name,
        dataset="drawn" if made.images is None else str(own),
        size=contract.size,
        channels=contract.channels,
        classes=made.names,
        task=made.task,
        architecture=name,
        framework=ADOPTED,
        recipe=Recipe(),
        parameters=made.parameters,
        data_digest=digest,
        window=made.window,
        unofficial=False,
        licence="",
        history=(),
        test=test or Scores(accuracy=None, balanced_accuracy=None, auc=None, images=len(scores)),
        train_seconds=0.0,
        images_per_second=0.0,
        compile_seconds=0.0,
        versions={},
        files=files,
    )
