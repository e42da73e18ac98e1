"""An artifact without a model, for runtimes that need none: null and delay."""

from pathlib import Path

import msgspec

from medserve import store
from medserve.certificate import unproven
from medserve.models import Artifact, Checkpoint, Recipe, Scores


def empty_artifact(folder: Path, size: int) -> Path:
    """Write an artifact without a model for images of `size` x `size` pixels into `folder`; returns `folder`."""
    checkpoint = Checkpoint(
        name="empty",
        dataset="synthetic",
        size=size,
        classes=tuple("abcdefgh"),
        architecture="cnn",
        framework="none",
        recipe=Recipe(),
        parameters=0,
        data_digest="",
        unofficial=False,
        licence="",
        history=(),
        test=Scores(accuracy=0.125, balanced_accuracy=0.125, auc=0.5, images=0),
        train_seconds=0.0,
        images_per_second=0.0,
        compile_seconds=0.0,
        versions={},
        files={},
    )
    certificate = msgspec.structs.replace(unproven(0, "null", ""), valid=True, reason=None)
    artifact = Artifact(
        name="empty", format="onnx", opset=None, checkpoint=checkpoint, certificate=certificate, versions={}, files={}
    )
    store.write_json(folder / "artifact.json", artifact)
    return folder
