"""Every published number of a run derived again: from the raw samples, and these from their digests.

`results.json`, written with the report, is what was published. A run's folder holds all that this needs, so it can be
carried to another machine.
"""

from math import isclose
from pathlib import Path
from typing import Any

import msgspec

from loadtest.analysis import table
from medserve import store
from medserve.errors import BadInput
from medserve.spec import Artifact, Checkpoint, Result, SelfTest

PUBLISHED = "results.json"
SAME = 1e-9
"""Relative difference up to which two numbers are one: another processor may round the last digit otherwise."""

MANIFESTS: tuple[tuple[str, type[Result] | type[Artifact] | type[Checkpoint] | type[SelfTest]], ...] = (
    ("results/*/*/result.json", Result),
    ("artifacts/*/artifact.json", Artifact),
    ("checkpoints/*/checkpoint.json", Checkpoint),
    ("selftest/selftest.json", SelfTest),
)
"""Where a run keeps manifests, and of which kind: the files that each names are held to their digests."""


class Verified(msgspec.Struct, frozen=True):
    """How much was looked at, and each difference in one line."""

    files: int
    numbers: int
    differences: list[str]


def verify(run: Path) -> Verified:
    """Derive everything again. Raises BadInput when `run` is no run, or nothing of it was published."""
    published = run / PUBLISHED
    if (run / "study.json").is_file() and not published.is_file():
        raise BadInput(f"{published}: no such file: nothing was published of this run; `medserve report {run}` does")
    files, differences = _digests(run)
    derived = table.rows(table.read(run))
    try:
        said = msgspec.json.decode(published.read_bytes(), type=list[dict[str, Any]])
    except msgspec.MsgspecError as error:
        raise BadInput(f"{published}: no list of results: {error}; `medserve report {run}` writes it again") from None
    numbers = 0
    before, now = ({row.get("cell"): row for row in rows} for rows in (said, derived))
    for cell in before.keys() | now.keys():
        if cell not in before or cell not in now:
            where = "published, but not in the run" if cell in before else "in the run, but not published"
            differences.append(f"{cell}: {where}")
            continue
        for key in before[cell].keys() | now[cell].keys():
            numbers += 1
            was, found = before[cell].get(key), now[cell].get(key)
            if not _same(was, found):
                differences.append(f"{cell}: {key} is published as {was}, and derived as {found}")
    return Verified(files, numbers, sorted(differences))


def _digests(run: Path) -> tuple[int, list[str]]:
    files, differences = 0, []
    for pattern, kind in MANIFESTS:
        for path in sorted(run.glob(pattern)):
            try:
                manifest = store.read_json(path, kind)
                files += 1 + len(manifest.files)
                store.check_digests(path.parent, manifest.files)
            except BadInput as error:
                differences.append(str(error))
    return files, differences


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float | int) and isinstance(other, float | int):
        return isclose(one, other, rel_tol=SAME)
    return bool(one == other)
