"""An artifact without a model, for runtimes that need none: null and delay."""

from pathlib import Path

from medserve import store
from medserve.spec import Artifact, Certificate, Checkpoint, Recipe, Scores


def empty_artifact(folder: Path, size: int) -> Path:
    """Write an artifact without a model for images of `size` x `size` pixels into `folder`; returns `folder`."""
    recipe, scores = Recipe(), Scores(accuracy=0.125, balanced_accuracy=0.125, auc=0.5, images=0)
    checkpoint = Checkpoint(
        name="empty",
        dataset="synthetic",
        size=size,
        classes=tuple("abcdefgh"),
        architecture="cnn",
        framework="none",
        recipe=recipe,
        parameters=0,
        data_digest="",
        unofficial=False,
        licence="",
        history=(),
        test=scores,
        train_seconds=0.0,
        images_per_second=0.0,
        compile_seconds=0.0,
        versions={},
        files={},
    )
    certificate = Certificate(
        runtime="null",
        images=0,
        max_abs=0.0,
        max_log_abs=0.0,
        decisions_changed=0,
        near_ties=0,
        accuracy=0.125,
        limit_abs=1e-4,
        tie_margin=2e-4,
        kind="float32",
        valid=True,
        reason=None,
        versions={},
    )
    artifact = Artifact(
        name="empty", format="onnx", opset=None, checkpoint=checkpoint, certificate=certificate, versions={}, files={}
    )
    store.write_json(folder / "artifact.json", artifact)
    return folder
