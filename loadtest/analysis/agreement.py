"""Whether the deployments of one checkpoint are one function: their scores on the test split, each against each."""

from collections.abc import Iterable
from itertools import combinations
from pathlib import Path

import msgspec
import numpy as np

from medserve.certificate import compare
from medserve.spec import Artifact, Certificate

SCORES = "scores.npy"
"""Of an artifact, beside its manifest."""


class Agreement(msgspec.Struct, frozen=True):
    """All pairs of the artifacts of one checkpoint: `pairs` maps two names to the second one held to the first."""

    checkpoint: str
    artifacts: tuple[Artifact, ...]
    pairs: dict[tuple[str, str], Certificate]

    @property
    def widest(self) -> tuple[str, str]:
        """The pair that differs most; one that is not finite differs more than any."""

        def width(pair: tuple[str, str]) -> float:
            error = self.pairs[pair].max_abs
            return float("inf") if error is None else error

        return max(self.pairs, key=width)

    @property
    def holds(self) -> bool:
        """Whether each could stand as the other's trainer."""
        return all(proof.valid for proof in self.pairs.values())


def agreements(run: Path, artifacts: Iterable[Artifact]) -> list[Agreement]:
    """One for each checkpoint of the run with its labels and the scores of two or more artifacts; lossy ones differ."""
    groups: dict[str, list[Artifact]] = {}
    for artifact in artifacts:
        labels = run / "checkpoints" / artifact.checkpoint.name / "test_labels.npy"
        kept = labels.is_file() and (run / "artifacts" / artifact.name / SCORES).is_file()
        if kept and artifact.precision == "float32":
            groups.setdefault(artifact.checkpoint.name, []).append(artifact)
    found = []
    for name, group in groups.items():
        labels = np.load(run / "checkpoints" / name / "test_labels.npy")
        scores = {artifact.name: np.load(run / "artifacts" / artifact.name / SCORES) for artifact in group}
        pairs = {
            (one, other): compare(scores[other], scores[one], labels, runtime="", versions={})
            for one, other in combinations(scores, 2)
        }
        if pairs:
            found.append(Agreement(name, tuple(group), pairs))
    return found
