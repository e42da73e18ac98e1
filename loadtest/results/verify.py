"""Derives every published number of a run again from its raw samples, after their digests are checked.

`results.json`, written with the report, is what was published, and SHA256SUMS beside it names every file of the run.
A run's folder holds all that this needs, so it can be verified on another machine.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from math import isclose
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadtest.results import table
from loadtest.results.bundle import PUBLISHED, SUMS, described
from loadtest.results.row import published
from medserve import store
from medserve.certificate import compare
from medserve.errors import BadInput
from medserve.models import Artifact, Checkpoint, Scores
from medserve.result import Result, SelfTest
from medserve.scores import score
from medserve.tables import scores_file

EQUAL = 1e-9
"""Relative difference up to which two numbers are equal: another processor may round the last digit otherwise."""

Manifest = Result | Artifact | Checkpoint | SelfTest
MANIFESTS: tuple[tuple[str, type[Manifest]], ...] = (
    # Launches have numbers; the name of a folder that a killed launch left begins with a dot.
    ("results/*/[0-9]*/result.json", Result),
    ("artifacts/*/artifact.json", Artifact),
    ("checkpoints/*/checkpoint.json", Checkpoint),
    ("selftest/selftest.json", SelfTest),
)
"""Where a run keeps manifests, and of which kind; the files that each names are checked against their digests."""
REFERENCE = ("test_scores.npy", "test_labels.npy")
"""The files that the scores of a checkpoint are derived from."""
CERTIFIED = ("images", "max_abs", "max_log_abs", "decisions_changed", "near_ties", "accuracy", "auc")
"""The fields of a certificate that are derived from the scores of its artifact."""


class Verified(msgspec.Struct, frozen=True):
    """How many files and numbers were checked, each difference in one line, and the checkpoints without labels."""

    files: int
    numbers: int
    differences: list[str]
    underivable: list[str]


def seal(run: Path) -> None:
    """Write SHA256SUMS of a published run: the digests that manifests state, and those of all other files."""
    sums: dict[str, str] = {}
    for path, manifest in _manifests(run, []):
        sums |= {str((path.parent / name).relative_to(run)): digest for name, digest in manifest.files.items()}
    for path in run.rglob("*"):
        name = path.relative_to(run)
        if path.is_file() and str(name) != SUMS and not any(part.startswith(".") for part in name.parts):
            sums.setdefault(str(name), store.sha256(path))
    store.write_bytes(run / SUMS, "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode())


def verify(run: Path, called: str | None = None) -> Verified:
    """Derive every number again; differences name the run as `called`.

    Raises BadInput when `run` is no run, of an older version, or not published.
    """
    table.check_version(run)
    for name in (PUBLISHED, SUMS):
        if (run / "study.json").is_file() and not (run / name).is_file():
            raise BadInput(
                f"{run / name}: no such file: nothing was published of this run; `medserve report {run}` does"
            )
    found = _Verification(run).result()
    named = [difference.replace(str(run), called or str(run)) for difference in found.differences]
    return msgspec.structs.replace(found, differences=named)


class _Verification:
    def __init__(self, run: Path) -> None:
        self._run = run
        self._numbers = 0
        self._differences: set[str] = set()
        self._underivable: dict[str, None] = {}

    def result(self) -> Verified:
        files = self._files() if (self._run / SUMS).is_file() else 0
        try:
            self._measured_artifacts()
            self._test_scores()
            self._certificates()
            self._rows()
        except BadInput as error:
            if not self._differences:
                raise
            self._differences.add(str(error))  # a file that differs may be unreadable too
        return Verified(files, self._numbers, sorted(self._differences), list(self._underivable))

    def _check(self, what: str, stated: Any, derived: Any, verb: str = "given") -> None:
        """Compare a value that a file states with what the samples give."""
        self._numbers += 1
        numbers = isinstance(stated, float | int) and isinstance(derived, float | int)
        if not (isclose(stated, derived, rel_tol=EQUAL) if numbers else stated == derived):
            self._differences.add(f"{what} is {verb} as {stated}, and derived as {derived}")

    def _files(self) -> int:
        """Check every file against SHA256SUMS, and that against the manifests. Returns the number of files."""
        sums: dict[str, str] = {}
        bundled = described(self._run)
        left_out = bundled.left_out if bundled else ()
        for number, line in enumerate((self._run / SUMS).read_text(errors="replace").splitlines(), 1):
            digest, gap, name = line.partition("  ")
            if not gap:
                self._differences.add(f"{self._run / SUMS}: line {number} is no digest with a file")
                continue
            sums[name] = digest
            if name in left_out:
                continue
            try:
                store.check_digests(self._run, {name: digest})
            except (BadInput, OSError, ValueError) as error:  # a damaged line may hold no valid name
                self._differences.add(f"{SUMS}: {error}")
        unreadable: list[str] = []
        for path, manifest in _manifests(self._run, unreadable):
            for name, digest in manifest.files.items():
                if sums.get(str((path.parent / name).relative_to(self._run))) != digest:
                    self._differences.add(f"{path}: {name} has another digest here than in {SUMS}, or none there")
        self._differences.update(unreadable)
        return len(sums) - len(left_out)

    def _measured_artifacts(self) -> None:
        """Check that the artifacts of the run are those that its results were measured with."""
        found = list(_manifests(self._run, []))
        kept = {artifact.name: artifact.files for _, artifact in found if isinstance(artifact, Artifact)}
        for path, result in found:
            if isinstance(result, Result) and (measured := result.artifact) is not None:
                self._numbers += 1
                if kept.get(measured.name, measured.files) != measured.files:
                    place = self._run / "artifacts" / measured.name
                    self._differences.add(f"{path}: measured with another artifact than the one in {place}, made later")

    def _test_scores(self) -> None:
        """Derive the scores of every checkpoint, and check each manifest that states them."""
        derived: dict[str, Scores] = {}
        stated: list[tuple[Path, Checkpoint]] = []
        for path, manifest in _manifests(self._run, []):
            source = manifest.artifact if isinstance(manifest, Result) else manifest
            checkpoint = source.checkpoint if isinstance(source, Artifact) else source
            if not isinstance(checkpoint, Checkpoint):
                continue
            stated.append((path, checkpoint))
            if isinstance(manifest, Checkpoint) and manifest.files.keys() >= set(REFERENCE):
                with suppress(BadInput):  # already among the differences
                    scores, labels = _arrays({path.parent / name: manifest.files[name] for name in REFERENCE})
                    derived[checkpoint.name] = score(labels, scores)
        for path, checkpoint in stated:
            name = checkpoint.name
            if name not in derived:  # many manifests state the same checkpoint
                reason = f"{name}: the run keeps no labels of its test images to derive its scores from"
                self._underivable[reason] = None
                continue
            given, truth = checkpoint.test, derived[name]
            for field in Scores.__struct_fields__:
                self._check(f"{path}: {field} of {name}", getattr(given, field), getattr(truth, field))

    def _certificates(self) -> None:
        """Derive the certificates from the scores of the artifacts and of the trainer."""
        for path, artifact in _manifests(self._run, []):
            if not isinstance(artifact, Artifact):
                continue
            truth, files = self._run / "checkpoints" / artifact.checkpoint.name, artifact.checkpoint.files
            for proof in (artifact.certificate, *artifact.further):
                name = scores_file(artifact.format, proof.runtime)
                if name not in artifact.files:
                    continue
                with suppress(BadInput, OSError):  # already among the differences, or there are no labels
                    labelled = artifact.adopted is None or REFERENCE[1] in files
                    references = {truth / beside: files.get(beside, "") for beside in REFERENCE[: 1 + labelled]}
                    scores, trainers, *labels = _arrays({path.parent / name: artifact.files[name], **references})
                    truths = labels[0] if labels else None
                    found = compare(
                        scores,
                        trainers,
                        truths,
                        task=artifact.checkpoint.task,
                        runtime=proof.runtime,
                        versions={},
                    )
                    by = "" if proof is artifact.certificate else f" by {proof.runtime}"
                    for field in CERTIFIED:
                        self._check(f"{path}: {field}{by}", getattr(proof, field), getattr(found, field))

    def _rows(self) -> None:
        """Check each value of each published row by the samples; keys that another version added are left out."""
        path = self._run / PUBLISHED
        derived = [published(row) for row in table.rows(table.read(self._run))]
        try:
            found = msgspec.json.decode(path.read_bytes(), type=list[dict[str, Any]])
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            mend = f"`medserve report {self._run}` writes it again"
            raise BadInput(f"{path}: no list of results: {error}; {mend}") from None
        before, now = ({row.get("cell"): row for row in rows} for rows in (found, derived))
        for cell in before.keys() | now.keys():
            if cell in before and cell in now:
                for key in before[cell].keys() & now[cell].keys():
                    self._check(f"{cell}: {key}", before[cell][key], now[cell][key], "published")
            else:
                where = "published, but not in the run" if cell in before else "in the run, but not published"
                self._differences.add(f"{cell}: {where}")


def _arrays(files: Mapping[Path, str]) -> list[NDArray[Any]]:
    """The arrays in .npy files, after their digests are checked."""
    for path, digest in files.items():
        store.check_digests(path.parent, {path.name: digest})
    return [np.load(path) for path in files]


def _manifests(run: Path, unreadable: list[str]) -> Iterator[tuple[Path, Manifest]]:
    for pattern, kind in MANIFESTS:
        for path in sorted(run.glob(pattern)):
            try:
                yield path, store.read_json(path, kind)
            except BadInput as error:
                unreadable.append(str(error))
