"""Bundles: a run in one file, from which every number is derived again, and of which no byte changes unseen."""

import hashlib
import io
import json
import random
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Stage
from made_run import build, prove, study

from loadtest import samples
from loadtest.report import page
from loadtest.results import bundle, table
from loadtest.results.verify import verify
from medserve import store
from medserve.errors import BadInput

Members = list[tuple[str, bytes]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = study(sizes=(28,), frameworks=("pytorch",))
    out = build(tmp_path_factory.mktemp("runs") / "made", made, lambda deployed, cell, index: 2.0 + index / 100)
    prove(out)
    stages = {"place_ns": [1], "run_ns": [2], "fetch_ns": [3], "warmup": [False]}
    samples.write(next(out.glob("results/*in-process-1/0")) / "stages.parquet", stages, samples.STAGES)
    (out / "logs").mkdir()
    (out / "logs" / "train.log").write_text("what a framework said")
    (next(iter((out / "checkpoints").iterdir())) / "weights.safetensors").write_bytes(b"weights")
    page.write(out)
    return out


@pytest.fixture(scope="module")
def bundled(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "made.zip"
    bundle.write(run, out)
    return out


def refusal(path: Path) -> str:
    """Why a bundle is refused, in one line; it leaves nothing behind."""
    with pytest.raises(BadInput) as refused, bundle.opened(path) as folder:
        verify(folder)
    line = str(refused.value)
    assert "\n" not in line
    assert str(path) in line, "the bundle is named, and not a temporary folder"
    return line


def rewritten(path: Path, out: Path, change: Callable[[Members], Iterable[tuple[str, bytes]]]) -> Path:
    """A zip file of a bundle's files after a change, with the digest that its end should state."""
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(out, "w") as archive:
        archive.comment = b"0" * bundle.DIGEST_LENGTH
        for name, content in change(members):
            bundle._add(archive, name, content)
    with out.open("r+b") as file:
        file.seek(-bundle.DIGEST_LENGTH, 2)
        file.write(bundle._digest_before_the_end(out).encode())
    return out


def test_every_number_is_derived_again_from_the_bundle_alone(run: Path, bundled: Path) -> None:
    with bundle.opened(bundled) as folder:
        assert folder != run
        found = verify(folder)
        names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        rows = table.rows(table.read(folder))
    assert not folder.exists()
    assert (found.differences, found.numbers) == ([], verify(run).numbers)
    assert rows == table.rows(table.read(run))
    assert not [name for name in names if re.search(r"safetensors|golden|\.log|\.html|figures|model", name)]


def test_the_same_run_gives_the_same_bytes(run: Path, bundled: Path, tmp_path: Path) -> None:
    made, digest = bundle.write(run, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == bundled.read_bytes()
    assert digest == store.sha256(bundled)
    assert made.study == "made"
    assert made.incomplete is None
    assert made.data == {"synthetic": "official"}
    assert any(name.endswith("weights.safetensors") for name in made.left_out)


def test_the_commands_take_it_wherever_they_take_a_run(run: Path, bundled: Path, stage: Stage, tmp_path: Path) -> None:
    done = stage("loadtest", "bundle", str(run), "--out", str(tmp_path / "b.zip"), "--json")
    said = json.loads(done.stdout)
    assert said["sha256"] == store.sha256(bundled)
    assert said["bytes"] == bundled.stat().st_size
    for words in (("results", "--format", "csv"), ("compare", "--format", "json")):
        of_run, of_bundle = (stage("loadtest", words[0], str(path), *words[1:]) for path in (run, bundled))
        assert of_bundle.returncode == 0, of_bundle.stderr
        assert of_bundle.stdout == of_run.stdout
    done = stage("loadtest", "verify", str(bundled))
    assert done.returncode == 0, done.stderr
    assert ", 0 differ" in done.stdout
    done = stage("loadtest", "report", str(bundled), "--out", str(tmp_path / "page" / "report.html"))
    assert done.returncode == 0, done.stderr
    of_run = (run / "report.md").read_text().splitlines()
    assert (tmp_path / "page" / "report.md").read_text().splitlines() == of_run
    done = stage("loadtest", "compare", str(run), str(bundled))
    assert done.returncode == 0, done.stderr


def test_no_change_of_a_byte_goes_unseen(bundled: Path, tmp_path: Path) -> None:
    """Of 100 random changes: bytes flipped, cut off, put in or put at the end."""
    content, chance = bundled.read_bytes(), random.Random(4)
    for number in range(100):
        at, changed = chance.randrange(len(content)), bytearray(content)
        match number % 4:
            case 0 | 1:
                changed[at] ^= 1 << chance.randrange(8)
            case 2:
                changed[at:at] = chance.randbytes(3)
            case 3:
                del changed[at:]
        damaged = tmp_path / "damaged.zip"
        damaged.write_bytes(changed)
        refusal(damaged)


def test_no_change_of_a_file_goes_unseen_even_with_a_new_digest(bundled: Path, tmp_path: Path) -> None:
    """Of 100 random changes of files, each in a well-formed bundle: what was changed is named."""
    chance = random.Random(5)
    with zipfile.ZipFile(bundled) as archive:
        names = archive.namelist()
    for number in range(100):
        name = chance.choice(names)

        def change(members: Members, name: str = name, kind: int = number % 5) -> Members:
            place = next(at for at, (known, _) in enumerate(members) if known == name)
            content = bytearray(members[place][1])
            match kind:
                case 0:
                    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
                    members[place] = (name, bytes(content))
                case 1:
                    members[place] = (f"{name}.old", bytes(content))
                case 2:
                    del members[place]
                case 3:
                    members.insert(place, (f"results/{chance.randrange(99)}/0/samples.parquet", bytes(content)))
                case 4:
                    other = (place + 1) % len(members)
                    (first, one), (second, two) = members[place], members[other]
                    members[place], members[other] = (first, two), (second, one)
            return members

        line = refusal(rewritten(bundled, tmp_path / "changed.zip", change))
        assert re.search(r"bundle\.json|SHA256SUMS|results|checkpoints|artifacts|study", line), line


def renamed(bundled: Path, out: Path, name: str) -> Path:
    """A bundle with one record more, under a name that its list has too."""

    def change(members: Members) -> Members:
        content = dict(members)
        described = json.loads(content[bundle.BUNDLE])
        described["files"][name] = 3
        return [(bundle.BUNDLE, json.dumps(described).encode()), *members[1:], (name, b"abc")]

    return rewritten(bundled, out, change)


@pytest.mark.parametrize("name", ["../outside.json", "/etc/outside.json", "results/../../x.json", "run.sh", "a\\..\\b"])
def test_a_file_outside_or_of_another_kind_is_refused(bundled: Path, tmp_path: Path, name: str) -> None:
    line = refusal(renamed(bundled, tmp_path / "b.zip", name))
    assert "is no file of a run" in line
    assert not list(tmp_path.rglob("outside*"))


def test_a_bomb_is_refused_before_it_is_unpacked(
    bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "MOST_BYTES", 10_000)
    assert "is larger than 10,000 bytes" in refusal(bundled)
    monkeypatch.setattr(bundle, "MOST_BYTES", 100_000)
    assert "a bundle may have up to 100,000" in refusal(bundled)
    monkeypatch.undo()
    # A record of constants packs any number of rows into a page.
    monkeypatch.setattr(bundle, "MOST_ROWS", 100)
    assert re.search(r"results/\S+/0/samples\.parquet: \d+ rows; a record may have up to 100$", refusal(bundled))


def forged(bundled: Path, out: Path, ending: str, content: bytes) -> Path:
    """A bundle in which one file has another content, with all digests and sizes to match."""

    def change(members: Members) -> Members:
        files = dict(members)
        name = next(name for name in files if name.endswith(ending))
        files[name] = content
        line = f"{hashlib.sha256(content).hexdigest()}  {name}"
        files[bundle.SUMS] = re.sub(rb"(?m)^.*  " + re.escape(name).encode() + b"$", line.encode(), files[bundle.SUMS])
        described = json.loads(files[bundle.BUNDLE])
        described["files"] |= {name: len(content), bundle.SUMS: len(files[bundle.SUMS])}
        files[bundle.BUNDLE] = json.dumps(described).encode()
        return list(files.items())

    return rewritten(bundled, out, change)


def test_an_array_or_a_record_that_claims_more_than_it_holds_is_refused(bundled: Path, tmp_path: Path) -> None:
    head = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 8), }"
    array = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode()
    assert "no array of numbers" in refusal(forged(bundled, tmp_path / "a.zip", "test_scores.npy", array))
    objects = io.BytesIO()
    np.save(objects, np.array([{}], object), allow_pickle=True)
    line = refusal(forged(bundled, tmp_path / "o.zip", "test_scores.npy", objects.getvalue()))
    assert "no array of numbers" in line, "nothing is unpickled"
    long = io.BytesIO()
    pq.write_table(pa.table({"error": ["x" * 20_000] * 5}), long)
    line = refusal(forged(bundled, tmp_path / "e.zip", "samples.parquet", long.getvalue()))
    assert "an error of more than 10,000 bytes" in line


def test_a_file_that_holds_more_than_it_states_is_refused(bundled: Path, tmp_path: Path) -> None:
    content = bytearray(bundled.read_bytes())
    with zipfile.ZipFile(bundled) as archive:
        member = archive.getinfo("results.json")
    size = member.file_size.to_bytes(4, "little")
    at = -1
    # In the file's own header, and in the list at the end.
    while (at := content.find(size, at + 1)) >= 0:
        content[at : at + 4] = (5).to_bytes(4, "little")
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(content)
    assert "results.json" in refusal(damaged)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    for name, content in {"text.zip": b"no zip", "empty.zip": b"", "weights.zip": b"PK\x03\x04" + bytes(80)}.items():
        (tmp_path / name).write_bytes(content)
        assert "a damaged bundle, or none" in refusal(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    assert "no bundle of medserve: it holds no bundle.json" in refusal(tmp_path / "other.zip")
    with pytest.raises(BadInput, match="no such file or folder"), bundle.opened(tmp_path / "absent.zip"):
        pass


def test_a_later_bundle_is_read_without_what_is_unknown_and_an_older_one_refused(bundled: Path, tmp_path: Path) -> None:
    def stating(number: int) -> Path:
        def change(members: Members) -> Members:
            described = json.loads(members[0][1])
            described |= {"schema": number, "sealed_by": "somebody"}
            return [(bundle.BUNDLE, json.dumps(described).encode()), *members[1:]]

        return rewritten(bundled, tmp_path / f"{number}.zip", change)

    with bundle.opened(stating(9)) as folder:
        assert not verify(folder).differences
    assert re.search(r"bundle\.json: schema 1, this program reads 2 and later", refusal(stating(1)))


def test_what_cannot_be_bundled_is_told_in_one_line(run: Path, bundled: Path, tmp_path: Path, stage: Stage) -> None:
    for words, line in (
        ([str(tmp_path)], "no run (it has no study.json)"),
        ([str(bundled)], "a file; give the folder"),
        ([str(run), "--out", str(tmp_path / "absent" / "b.zip")], "make it, or name another --out"),
    ):
        done = stage("loadtest", "bundle", *words)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert line in done.stderr
    done = stage("loadtest", "report", str(bundled), str(bundled))
    assert (done.returncode, done.stderr) == (2, "error: a run is given twice; give each once\n")


def test_a_run_that_is_not_as_it_was_published_is_not_bundled(run: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(run, copied)
    path = next(copied.glob("results/*/0/samples.parquet"))
    whole = pq.read_table(path)
    pq.write_table(whole.slice(1), path)
    with pytest.raises(BadInput, match=r"samples\.parquet: its SHA-256 .* `medserve report .*` publishes it"):
        bundle.write(copied, tmp_path / "b.zip")
    (copied / bundle.SUMS).unlink()
    with pytest.raises(BadInput, match="nothing was published of this run; `medserve report"):
        bundle.write(copied, tmp_path / "b.zip")
    assert not list(tmp_path.glob("*.zip*"))
    assert isinstance(whole, pa.Table)


def test_half_a_run_is_bundled_and_says_so(run: Path, tmp_path: Path, stage: Stage) -> None:
    half = tmp_path / "half"
    shutil.copytree(run, half)
    for cell in half.glob("results/*closed-1"):
        shutil.rmtree(cell)
    page.write(half)
    done = stage("loadtest", "bundle", str(half))
    assert done.returncode == 0, done.stderr
    assert re.search(r"incomplete: of \d+ rows \d+ missing", done.stdout)
    done = stage("loadtest", "verify", str(tmp_path / "half.zip"))
    assert done.returncode == 0
    assert re.search(r"incomplete: of \d+ rows \d+ missing", done.stdout)
