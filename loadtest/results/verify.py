"""Derives every published number of a run again from its raw samples, after their digests are checked.

`results.json`, written with the report, is what was published, and SHA256SUMS beside it names every file of the run.
A run's folder holds all that this needs, so it can be verified on another machine.
"""

from collections.abc import Iterator
from contextlib import suppress
from math import isclose
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from loadtest.results import table
from loadtest.results.row import published
from medserve import store
from medserve.certificate import compare
from medserve.errors import BadInput
from medserve.result import Result, SelfTest
from medserve.scores import score
from medserve.spec import Artifact, Certificate, Checkpoint, Scores
from medserve.tables import scores_file

PUBLISHED = "results.json"
SUMS = "SHA256SUMS"
"""In the format of `sha256sum --check`, which works without medserve."""
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


def verify(run: Path) -> Verified:
    """Derive every number again. Raises BadInput when `run` is no run, an older version, or unpublished."""
    table.check_version(run)
    for name in (PUBLISHED, SUMS):
        if (run / "study.json").is_file() and not (run / name).is_file():
            raise BadInput(
                f"{run / name}: no such file: nothing was published of this run; `medserve report {run}` does"
            )
    differences: list[str] = []
    underivable: list[str] = []
    files = numbers = 0
    if (run / SUMS).is_file():
        files = _files(run, differences)
    try:
        numbers = _test_scores(run, differences, underivable) + _certificates(run, differences)
        numbers += _rows(run, differences)
    except BadInput as error:
        if not differences:
            raise
        differences.append(str(error))  # a file that differs may be unreadable too
    return Verified(files, numbers, sorted(set(differences)), underivable)


def _files(run: Path, differences: list[str]) -> int:
    """Check every file against SHA256SUMS, and SHA256SUMS against the manifests. Returns the number of files."""
    sums: dict[str, str] = {}
    for number, line in enumerate((run / SUMS).read_text(errors="replace").splitlines(), 1):
        digest, gap, name = line.partition("  ")
        if not gap:
            differences.append(f"{run / SUMS}: line {number} is no digest with a file")
            continue
        sums[name] = digest
        try:
            store.check_digests(run, {name: digest})
        except (BadInput, OSError, ValueError) as error:  # a damaged line may hold no valid name
            differences.append(f"{SUMS}: {error}")
    for path, manifest in _manifests(run, differences):
        for name, digest in manifest.files.items():
            if sums.get(str((path.parent / name).relative_to(run))) != digest:
                differences.append(f"{path}: {name} has another digest here than in {SUMS}, or none there")
    return len(sums)


def _test_scores(run: Path, differences: list[str], underivable: list[str]) -> int:
    """Derive the scores of every checkpoint, and check each manifest that states them. Returns the number of scores."""
    derived: dict[str, Scores] = {}
    stated: list[tuple[Path, Checkpoint]] = []
    for path, manifest in _manifests(run, []):
        source = manifest.artifact if isinstance(manifest, Result) else manifest
        checkpoint = source.checkpoint if isinstance(source, Artifact) else source
        if not isinstance(checkpoint, Checkpoint):
            continue
        stated.append((path, checkpoint))
        if isinstance(manifest, Checkpoint) and manifest.files.keys() >= set(REFERENCE):
            with suppress(BadInput):  # already among the differences
                store.check_digests(path.parent, {name: manifest.files[name] for name in REFERENCE})
                scores, labels = (np.load(path.parent / name) for name in REFERENCE)
                derived[checkpoint.name] = score(labels, scores)
    numbers = 0
    for path, checkpoint in stated:
        if (truth := derived.get(checkpoint.name)) is None:
            underivable.append(
                f"{checkpoint.name}: the run keeps no labels of its test images to derive its scores from"
            )
            continue
        for field in Scores.__struct_fields__:
            numbers += 1
            was, now = getattr(checkpoint.test, field), getattr(truth, field)
            if not _equal(was, now):
                differences.append(f"{path}: {field} of {checkpoint.name} is given as {was}, and derived as {now}")
    underivable[:] = dict.fromkeys(underivable)  # many manifests state the same checkpoint
    return numbers


def _certificates(run: Path, differences: list[str]) -> int:
    """Derive the certificates from the scores of the artifacts and of the trainer. Returns the number of values."""
    numbers = 0
    for path, artifact in _manifests(run, []):
        if not isinstance(artifact, Artifact):
            continue
        for proof in (artifact.certificate, *artifact.further):
            if (name := scores_file(artifact.format, proof.runtime)) in artifact.files:
                numbers += _certificate(run, path, artifact, proof, name, differences)
    return numbers


def _certificate(
    run: Path, path: Path, artifact: Artifact, proof: Certificate, name: str, differences: list[str]
) -> int:
    """Check one certificate by the scores in the file `name` and those of the trainer."""
    truth = run / "checkpoints" / artifact.checkpoint.name
    files = {path.parent / name: artifact.files[name]}
    files |= {truth / beside: artifact.checkpoint.files.get(beside, "") for beside in REFERENCE}
    with suppress(BadInput, OSError):  # already among the differences, or there are no labels
        for file, digest in files.items():
            store.check_digests(file.parent, {file.name: digest})
        scores, reference, labels = (np.load(file) for file in files)
        found = compare(scores, reference, labels, runtime=proof.runtime, versions={})
        for field in CERTIFIED:
            was, derived = getattr(proof, field), getattr(found, field)
            if not _equal(was, derived):
                by = "" if proof is artifact.certificate else f" by {proof.runtime}"
                differences.append(f"{path}: {field}{by} is given as {was}, and derived as {derived}")
        return len(CERTIFIED)
    return 0


def _rows(run: Path, differences: list[str]) -> int:
    """Check each value of each published row by the samples. Returns the number of values."""
    derived = [published(row) for row in table.rows(table.read(run))]
    try:
        found = msgspec.json.decode((run / PUBLISHED).read_bytes(), type=list[dict[str, Any]])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadInput(
            f"{run / PUBLISHED}: no list of results: {error}; `medserve report {run}` writes it again"
        ) from None
    numbers = 0
    before, now = ({row.get("cell"): row for row in rows} for rows in (found, derived))
    for cell in before.keys() | now.keys():
        if cell not in before or cell not in now:
            where = "published, but not in the run" if cell in before else "in the run, but not published"
            differences.append(f"{cell}: {where}")
            continue
        for key in before[cell].keys() | now[cell].keys():
            numbers += 1
            old, new = before[cell].get(key), now[cell].get(key)
            if not _equal(old, new):
                differences.append(f"{cell}: {key} is published as {old}, and derived as {new}")
    return numbers


def _manifests(run: Path, unreadable: list[str]) -> Iterator[tuple[Path, Manifest]]:
    for pattern, kind in MANIFESTS:
        for path in sorted(run.glob(pattern)):
            try:
                yield path, store.read_json(path, kind)
            except BadInput as error:
                unreadable.append(str(error))


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, float | int) and isinstance(second, float | int):
        return isclose(first, second, rel_tol=EQUAL)
    return bool(first == second)
