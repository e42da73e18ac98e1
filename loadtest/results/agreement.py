"""Whether the deployments of a checkpoint compute the same function: all pairs of their scores on the test split."""

from collections.abc import Iterable
from itertools import combinations
from pathlib import Path

import msgspec
import numpy as np

from medserve.certificate import compare
from medserve.models import Artifact, Certificate
from medserve.tables import scores_file

Served = tuple[str, str]
"""The names of an artifact and of a runtime that was certified for it."""


class Agreement(msgspec.Struct, frozen=True):
    """The deployments of a checkpoint with their certificates; `pairs` certifies the second of two by the first."""

    checkpoint: str
    served: dict[Served, tuple[Artifact, Certificate]]
    pairs: dict[tuple[Served, Served], Certificate]

    @property
    def widest(self) -> tuple[Served, Served]:
        """The pair that differs most; a difference that is not finite counts as the largest."""

        def width(pair: tuple[Served, Served]) -> float:
            error = self.pairs[pair].max_abs
            return float("inf") if error is None else error

        return max(self.pairs, key=width)

    @property
    def holds(self) -> bool:
        """Whether every pair is within the limits of a certificate."""
        return all(proof.valid for proof in self.pairs.values())


def agreements(run: Path, artifacts: Iterable[Artifact]) -> list[Agreement]:
    """The agreement of each checkpoint that has labels and the scores of two or more float32 deployments."""
    groups: dict[str, dict[Served, tuple[Artifact, Certificate]]] = {}
    scores: dict[Served, Path] = {}
    for artifact in artifacts:
        for proof in (artifact.certificate, *artifact.further):
            path = run / "artifacts" / artifact.name / scores_file(artifact.format, proof.runtime)
            if artifact.precision == "float32" and path.is_file():
                served = artifact.name, proof.runtime
                groups.setdefault(artifact.checkpoint.name, {})[served] = artifact, proof
                scores[served] = path
    found = []
    for name, group in groups.items():
        path = run / "checkpoints" / name / "test_labels.npy"
        if len(group) < 2 or not path.is_file():
            continue
        labels, loaded = np.load(path), {served: np.load(scores[served]) for served in group}
        task = next(artifact.checkpoint.task for artifact, _ in group.values())
        pairs = {
            (first, second): compare(loaded[second], loaded[first], labels, task=task, runtime=second[1], versions={})
            for first, second in combinations(loaded, 2)
        }
        found.append(Agreement(name, group, pairs))
    return found
