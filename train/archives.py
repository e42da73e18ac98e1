"""The official archives: their addresses and digests, and their download."""

import ast
import http.client
import importlib.util
import shutil
import ssl
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from medserve.errors import BadInput, CannotRun, printable
from medserve.progress import Progress
from medserve.spec import Noun
from medserve.store import CHUNK, commit, file_digest, locked

MB = 1_000_000
SHA256_LENGTH = 64
TIMEOUT = 60.0
"""Seconds without a byte after which a download fails; run again, it resumes."""


class Source(Noun, frozen=True, kw_only=True):
    """An official file: address, MD5 or SHA-256 or the first characters of this, class names in label order.

    8 characters of a digest detect a damaged file, but another file with the same 32 bits can be made in minutes.
    """

    url: str
    md5: str = ""
    sha256: str = ""
    classes: tuple[str, ...] = ()

    @property
    def is_short(self) -> bool:
        """Whether only the first characters of the SHA-256 are known."""
        return not self.md5 and len(self.sha256) < SHA256_LENGTH

    def differs(self, path: Path) -> str | None:
        """The digest of another file; null if the file is this archive."""
        expected = self.md5 or self.sha256
        found = file_digest(path, "md5" if self.md5 else "sha256")
        return None if found.startswith(expected) else found


def official(name: str, size: int) -> Source:
    """The row of the `medmnist` package's table. Raises CannotRun when that package is missing or has no such row.

    Its `info.py` is parsed, not run: running it makes a folder in the home directory, and importing it loads torch.
    """
    spec = importlib.util.find_spec("medmnist")
    if spec is None or spec.origin is None:
        raise CannotRun("the table of official archives is in the package medmnist; pip install medmnist")
    tree = ast.parse(Path(spec.origin).with_name("info.py").read_text(encoding="utf-8"))
    tables = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "INFO"
    ]
    suffix = "" if size == 28 else f"_{size}"
    try:
        row: dict[str, Any] = ast.literal_eval(tables[0])[name]
        classes = tuple(row["label"][str(index)] for index in range(len(row["label"])))
        return Source(url=row[f"url{suffix}"], md5=row[f"MD5{suffix}"], classes=classes)
    except (IndexError, KeyError, ValueError) as error:
        raise CannotRun(f"medmnist's info.py has no {name} at {size} px ({error}); install another medmnist") from None


def fetch(source: Source, target: Path) -> None:
    """Download an archive, or resume its download, and rename it when its digest is right.

    Keeps an archive that is already there. Raises BadInput when another file has its name, CannotRun when the download
    fails or its digest is wrong.
    """
    with locked(target):
        if target.exists():
            if source.differs(target):
                raise BadInput(f"{target}: is there, but is not the official archive; move it away to fetch that one")
            return
        partial = target.with_name(f".{target.name}.partial")
        try:
            _download(source.url, partial)
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
            status = f"HTTP {error.code} " if isinstance(error, urllib.error.HTTPError) else ""
            failure = f"{source.url}: {status}{getattr(error, 'reason', error)}"
            raise CannotRun(f"{failure}; run again to go on, or put the file at {target} by hand") from None
        if found := source.differs(partial):
            partial.unlink()
            expected = f"MD5 {source.md5}" if source.md5 else f"SHA-256 {source.sha256}" + "..." * source.is_short
            raise CannotRun(f"{source.url}: the download has {found}, expected {expected}; removed, run again")
        commit(partial, target)


def _download(url: str, partial: Path) -> None:
    done = partial.stat().st_size if partial.exists() else 0
    # The address is https, from a table; only tests give another.
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})  # noqa: S310 - see above
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)  # noqa: S310 - see above
    except urllib.error.HTTPError as error:
        error.close()
        if not (done and error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE):
            raise
        # The server has no further bytes: the partial file is complete, or another file. Its digest decides.
        return
    with answer:
        if answer.status != http.client.PARTIAL_CONTENT:
            done = 0
        total = done + int(answer.headers.get("Content-Length", 0))
        if total - done > shutil.disk_usage(partial.parent).free:
            raise CannotRun(f"{partial.parent}: no room for {total / MB:.0f} MB; free some or set MEDMNIST_ROOT")
        progress = Progress(f"fetch {partial.name[1:].removesuffix('.partial')}", -(-total // MB), "MB")
        progress.resume(done // MB)
        with partial.open("ab" if done else "wb") as file:
            while piece := answer.read(CHUNK):
                file.write(piece)
                done += len(piece)
                progress.update(done // MB if done < total else progress.total)
        if done < total:
            raise http.client.IncompleteRead(b"", total - done)


def say(line: str) -> None:
    """Print a line for the user to standard error; standard output is for programs."""
    print(printable(line), file=sys.stderr, flush=True)
