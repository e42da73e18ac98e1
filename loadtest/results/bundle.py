"""A run in one file: what every published number is derived from, to be handed on, cited and checked anywhere.

A bundle is a zip file of the run's records, manifests, scores and published results, as they are. `bundle.json` says
what it is and which files of the run it leaves out: images, models, weights, logs and pages. SHA256SUMS is the run's.
The file ends with the SHA-256 of all its bytes before (as the comment of the zip file), so no byte of it can change
unseen; a consistent forgery is found by the digest of the whole file, which is what a publication cites.
"""

import hashlib
import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from loadtest.results import table
from medserve import __version__, store
from medserve.errors import BadInput
from medserve.models import Checkpoint
from medserve.result import OLDEST, SCHEMA, Result
from medserve.spec import Noun
from medserve.study import Study

PUBLISHED = "results.json"
SUMS = "SHA256SUMS"
"""In the format of `sha256sum --check`, which works without medserve."""
BUNDLE = "bundle.json"
ENDING = ".zip"
KEPT = re.compile(
    r"study\.json|changes\.json|results\.json|(failures|tuned|peaks|explained)/[^/]+\.json|selftest/[^/]+\.(json|parquet)|"
    r"results/[^/]+/\d+/[^/]+\.(json|parquet)|artifacts/[^/]+/(artifact\.json|scores[^/]*\.npy)|"
    r"checkpoints/[^/]+/(checkpoint\.json|test_(scores|labels)\.npy)"
)
"""The files of a run from which its numbers are derived."""
MODELS = re.compile(r"artifacts/[^/]+/(?!.*golden\.npz).+|checkpoints/[^/]+/weights\.safetensors")
"""The files that are added where models and weights are asked for."""
MOST_FILES, MOST_BYTES, MOST_TEXT, MOST_ROWS = 200_000, 4 << 30, 64 << 20, 20_000_000
"""Bounds of a bundle that is read: its files, their bytes in all, those of one text, and the rows of one record."""
LONGEST_ERROR = 10_000
"""Bytes of the text of a failed request; a record may hold it once for a million rows."""
DIGEST_LENGTH = 64
_FIRST_DATE = (1980, 1, 1, 0, 0, 0)
"""Of every file in a bundle: the same run gives the same bytes."""


class Bundle(Noun, frozen=True, kw_only=True):
    """`bundle.json`: what a bundle is, the sizes of its files in bytes, and the files of the run that it leaves out.

    `started` is when the first of its records was made, `machine` the kind of machine, `data` says of each data set
    whether it is the official one or images of one's own, and `incomplete` what is missing or failed, null if nothing
    is.
    """

    oldest: ClassVar[int] = OLDEST
    schema: int = SCHEMA
    version: str
    study: str
    title: str
    started: str
    machine: str
    data: dict[str, Literal["official", "unofficial", "own"]]
    licences: dict[str, str]
    incomplete: str | None
    files: dict[str, int]
    left_out: tuple[str, ...]


def write(run: Path, out: Path, models: bool = False) -> tuple[Bundle, str]:
    """Write the bundle of a published run; returns what it is, and its SHA-256.

    Raises BadInput when the run is not as it was published, or nothing was measured in it.
    """
    if run.is_file():
        raise BadInput(f"{run}: a file; give the folder that `medserve run` made")
    if not out.parent.is_dir():
        raise BadInput(f"{out}: no folder {out.parent}; make it, or name another --out")
    table.check_run(run)
    if not (run / SUMS).is_file():
        raise BadInput(f"{run / SUMS}: no such file: nothing was published of this run; `medserve report {run}` does")
    sums = read_sums(run / SUMS)
    kept = [name for name in sorted(sums) if KEPT.fullmatch(name) or (models and MODELS.fullmatch(name))]
    _check_published(run, sums, kept)
    made = _describe(run, kept, tuple(sorted(sums.keys() - set(kept))))
    partial = store.partial_of(out)
    try:
        with partial.open("w+b") as file:
            with zipfile.ZipFile(file, "w") as archive:
                archive.comment = b"0" * DIGEST_LENGTH
                _add(archive, BUNDLE, store.encode(made))
                for name in (SUMS, *kept):
                    _add(archive, name, (run / name).read_bytes())
            file.seek(-DIGEST_LENGTH, 2)
            file.write(_digest_before_the_end(partial).encode())
        store.commit(partial, out)
    finally:
        partial.unlink(missing_ok=True)
    return made, store.sha256(out)


@contextmanager
def opened(path: Path) -> Iterator[Path]:
    """The folder of a run: `path` itself, or a temporary one with the files of the bundle `path`.

    Raises BadInput when there is nothing of that name, or the bundle is damaged, incomplete, or larger than it may be;
    in all errors of the block the bundle's name stands for the temporary folder's.
    """
    if not path.exists():
        raise BadInput(f"{path}: no such file or folder; give a run's folder, or a bundle")
    if path.is_file() and path.suffix != ENDING:
        raise BadInput(f"{path}: neither the folder of a run nor a bundle ({ENDING})")
    if path.is_dir():
        yield path
        return
    with TemporaryDirectory(prefix="medserve-") as place:
        folder = Path(place) / path.stem
        folder.mkdir()
        try:
            _unpack(path, folder)
            yield folder
        except BadInput as error:
            raise BadInput(str(error).replace(str(folder), str(path))) from None


def described(folder: Path) -> Bundle | None:
    """What the bundle says of itself whose files lie in `folder`; null for a run's own folder."""
    return store.read_json(folder / BUNDLE, Bundle) if (folder / BUNDLE).is_file() else None


def read_sums(path: Path) -> dict[str, str]:
    """The digests of a file in the format of sha256sum, by name. Raises BadInput for a line that is none."""
    sums: dict[str, str] = {}
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        digest, gap, name = line.partition("  ")
        if not gap or not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise BadInput(f"{path}: line {number} is no digest with a file")
        sums[name] = digest
    return sums


def _check_published(run: Path, sums: dict[str, str], kept: list[str]) -> None:
    again = f"`medserve report {run}` publishes it"
    measured = (str(path.relative_to(run)) for path in run.glob("results/*/[0-9]*/result.json"))
    for name in [PUBLISHED, *measured]:
        if name not in sums:
            raise BadInput(f"{run / name}: not among the published files; {again}")
    try:
        store.check_digests(run, {name: sums[name] for name in kept})
    except BadInput as error:
        raise BadInput(f"{error}; if it changed since the run was published, {again}") from None


def _describe(run: Path, kept: list[str], left_out: tuple[str, ...]) -> Bundle:
    study = store.read_json(run / "study.json", Study)
    results = [store.read_json(run / name, Result) for name in kept if name.endswith("/result.json")]
    if not results:
        raise BadInput(f"{run}: nothing was measured in this run; `medserve run` goes on")
    checkpoints = [store.read_json(run / name, Checkpoint) for name in kept if name.endswith("/checkpoint.json")]
    statuses = [row["status"] for row in json.loads((run / PUBLISHED).read_bytes())]
    faults = [f"{statuses.count(word)} {word}" for word in ("failed", "missing") if word in statuses]
    return Bundle(
        version=__version__,
        study=study.name,
        title=study.title,
        started=min(result.started for result in results),
        machine=machine_kind(results[0].machine),
        data={
            one.dataset: "own" if one.unpacked else "unofficial" if one.unofficial else "official"
            for one in checkpoints
        },
        licences={one.dataset: one.licence for one in checkpoints},
        incomplete=f"of {len(statuses)} rows {' and '.join(faults)}" if faults else None,
        files={name: (run / name).stat().st_size for name in (SUMS, *kept)},
        left_out=left_out,
    )


def machine_kind(machine: dict[str, Any]) -> str:
    """The processor, its usable cores, and the GPUs: what two machines of one kind have in common."""
    cores = f"{machine.get('cores_usable', '?')} cores"
    return ", ".join([str(machine.get("cpu") or "unknown processor"), cores, *machine.get("gpus", ())])


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    member = zipfile.ZipInfo(name, _FIRST_DATE)
    member.create_system = 3  # zipfile writes what it runs on
    member.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(member, content)


def _digest_before_the_end(path: Path) -> str:
    """SHA-256 of a bundle without its last bytes, which state it."""
    left, found = path.stat().st_size - DIGEST_LENGTH, hashlib.sha256()
    with path.open("rb") as file:
        while left > 0 and (piece := file.read(min(left, store.CHUNK))):
            found.update(piece)
            left -= len(piece)
    return found.hexdigest()


def _unpack(path: Path, folder: Path) -> None:
    """Write the files of a bundle into `folder`, after everything that its list says of them is checked."""
    try:
        with zipfile.ZipFile(path) as archive:
            intact = archive.comment == _digest_before_the_end(path).encode()
            members = {member.filename: member for member in archive.infolist()}
            if len(members) != len(archive.infolist()) or len(members) > MOST_FILES:
                raise BadInput(f"{path}: names a file twice, or holds more than {MOST_FILES:,}; get the bundle again")
            for name in (BUNDLE, SUMS):
                if name not in members:
                    raise BadInput(f"{path}: no bundle of medserve: it holds no {name}")
            _extract(archive, members[BUNDLE], folder, path)
            made = store.read_json(folder / BUNDLE, Bundle)
            _check_names(path, made, members)
            for name in made.files:
                _extract(archive, members[name], folder, path)
    except BadInput:
        raise
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, OSError) as error:
        raise BadInput(f"{path}: a damaged bundle, or none: {error}; get it again") from None
    _check_content(path, folder, made)
    if not intact:
        raise BadInput(f"{path}: its bytes are not those that were written, by the digest at its end; get it again")


def _check_names(path: Path, made: Bundle, members: dict[str, zipfile.ZipInfo]) -> None:
    for name in sorted(members.keys() ^ {BUNDLE, *made.files}):
        where = f"not in {BUNDLE}" if name in members else f"in {BUNDLE}, but missing"
        raise BadInput(f"{path}: {name!r} is {where}; get the bundle again")
    total = 0
    for name, size in made.files.items():
        if (name != SUMS and not (KEPT.fullmatch(name) or MODELS.fullmatch(name))) or ".." in Path(name).parts:
            raise BadInput(f"{path}: {name!r} is no file of a run; do not use this bundle")
        if members[name].file_size != size:
            raise BadInput(f"{path}: {name} has {members[name].file_size} bytes, {size} by {BUNDLE}; get it again")
        total += size
    if total > MOST_BYTES:
        raise BadInput(f"{path}: its files have {total:,} bytes; a bundle may have up to {MOST_BYTES:,}")


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path, path: Path) -> None:
    is_text = member.filename == SUMS or member.filename.endswith(".json")
    most = min(MOST_TEXT, MOST_BYTES) if is_text else MOST_BYTES
    if member.file_size > most or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BadInput(f"{path}: {member.filename} is larger than {most:,} bytes, or packed in another way")
    target = folder / member.filename
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with archive.open(member) as source, target.open("xb") as file:
            left = member.file_size
            while piece := source.read(store.CHUNK):
                left -= len(piece)
                if left < 0:
                    raise BadInput(f"{path}: {member.filename} has more bytes than it states; do not use this bundle")
                file.write(piece)
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, zlib.error) as error:
        raise BadInput(f"{path}: {member.filename} is damaged: {error}; get the bundle again") from None


def _check_content(path: Path, folder: Path, made: Bundle) -> None:
    """Check each file against SHA256SUMS, and that no record or array claims more than can be held."""
    sums = read_sums(folder / SUMS)
    for name in made.files:
        if name != SUMS:
            if name not in sums:
                raise BadInput(f"{path}: {name} is not in {SUMS}; do not use this bundle")
            store.check_digests(folder, {name: sums[name]})
            if name.endswith(".parquet"):
                _check_rows(folder / name)
            elif name.endswith(".npy"):
                _check_array(folder / name)
    for name in sorted(sums.keys() - made.files.keys() - set(made.left_out)):
        raise BadInput(f"{path}: {name} is in {SUMS}, but neither here nor left out; get the bundle again")


def _check_rows(path: Path) -> None:
    """Raise BadInput where few bytes stand for more rows, or longer texts, than can be held."""
    with suppress(pa.ArrowException):  # what else may be wrong with it, its reader says
        found = pq.read_metadata(path)
        if found.num_rows > MOST_ROWS:
            raise BadInput(f"{path}: {found.num_rows:,} rows; a record may have up to {MOST_ROWS:,}")
        if "error" in found.schema.names:
            for chunk in pq.ParquetFile(path, read_dictionary=["error"]).read(["error"])["error"].chunks:
                lengths = pc.binary_length(chunk.dictionary).to_numpy(zero_copy_only=False)
                if lengths.max(initial=0) > LONGEST_ERROR:
                    raise BadInput(f"{path}: an error of more than {LONGEST_ERROR:,} bytes; do not use this bundle")


def _check_array(path: Path) -> None:
    """Raise BadInput where a file's head states another number of values than the file holds, or no numbers."""
    try:
        np.lib.format.open_memmap(path, mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise BadInput(f"{path}: no array of numbers: {error}; do not use this bundle") from None
