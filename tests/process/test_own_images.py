"""Folders of one's own images as a data set: what is split how, and what is refused in one line."""

import csv
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from conftest import Stage
from PIL import Image
from test_image_files import dicom

from medserve.errors import BadInput
from train import data, own

SIZE = 12
COUNT = 20
"""Images of each class."""


def fill(folder: Path, classes: dict[str, int], *, mode: str = "L", first: int = 0) -> Path:
    """A folder per class, each with so many images of different pixels."""
    for place, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            pixels = np.random.default_rng([place, index + first]).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
            Image.fromarray(pixels).convert(mode).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture
def scans(home: Path) -> Path:
    return fill(home / "my scans", {"a": COUNT, "b": COUNT, "c": 5})


def opened(path: Path, size: int | None = SIZE, **options: object) -> data.Dataset:
    return data.open_dataset(str(path), size, **options)


def splits_of(found: data.Dataset) -> dict[bytes, str]:
    """The split of each image, by its pixels."""
    return {image.tobytes(): split for split in ("train", "val", "test") for image in found.images(split)}


def pixels_of(file: Path) -> bytes:
    with Image.open(file) as image:
        return image.tobytes()


def test_a_folder_is_split_by_class_and_content(scans: Path) -> None:
    found = opened(scans)
    assert (found.name, found.classes, found.channels, found.size) == ("my_scans", ("a", "b", "c"), 1, SIZE)
    assert (found.unofficial, found.licence, found.window) == (False, "", None)
    assert {split: np.bincount(found.labels(split)).tolist() for split in ("train", "val", "test")} == {
        "train": [14, 14, 3],
        "val": [2, 2, 1],
        "test": [4, 4, 1],
    }
    for split in ("train", "val", "test"):
        for image, label in zip(found.images(split), found.labels(split), strict=True):
            assert image.tobytes() in {pixels_of(file) for file in (scans / found.classes[label]).iterdir()}
    assert len(splits_of(found)) == 45
    assert np.diff(found.labels("train")).any(), "the classes are mixed, so that any stretch of a split has several"


def test_names_and_times_of_files_change_nothing(scans: Path, home: Path) -> None:
    found = opened(scans)
    made = (found.folder / "train_images.npy").stat().st_ino
    copy = shutil.copytree(scans, home / "elsewhere" / "my scans", copy_function=shutil.copyfile)
    again = opened(copy)
    assert (again.digest, again.folder) == (found.digest, found.folder)
    assert (found.folder / "train_images.npy").stat().st_ino == made, "it is not written again"
    for index, file in enumerate(sorted((scans / "a").iterdir())):
        file.rename(file.with_name(f"renamed-{index}.png"))
    renamed = opened(scans)
    assert renamed.folder != found.folder
    assert (renamed.digest, splits_of(renamed)) == (found.digest, splits_of(found))


def test_two_sources_of_one_name_lie_apart_and_open_by_their_folder(scans: Path, home: Path) -> None:
    other = fill(home / "other" / "my scans", {"a": 5, "b": 5}, mode="RGB")
    first, second = opened(scans), opened(other)
    assert first.name == second.name
    assert first.unpacked != second.unpacked
    assert second.channels == 3
    shutil.rmtree(scans)
    assert data.open_dataset(first.unpacked, SIZE).digest == first.digest
    with pytest.raises(BadInput, match="images of 12 px, not of 28 px"):
        data.open_dataset(first.unpacked, 28)
    with pytest.raises(BadInput, match="scans-0123abcd: not unpacked on this machine; `medserve data prepare PATH`"):
        data.open_dataset("scans-0123abcd", SIZE)


def test_an_image_that_is_replaced_makes_another_set(scans: Path) -> None:
    found = opened(scans)
    file = scans / "a" / "0.png"
    state = file.stat()
    shutil.copyfile(scans / "b" / "0.png", file)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    other = opened(scans)
    assert other.digest != found.digest
    assert other.folder != found.folder


def test_the_same_image_is_in_one_split(scans: Path) -> None:
    """A copy in the test split of what was trained on makes a network seem better than it is."""
    for index in range(COUNT):
        shutil.copyfile(scans / "a" / f"{index}.png", scans / "a" / f"copy-{index}.png")
    shutil.copyfile(scans / "a" / "0.png", scans / "b" / "copy.png")
    found = opened(scans)
    splits: dict[bytes, set[str]] = {}
    for split in ("train", "val", "test"):
        for image in found.images(split):
            splits.setdefault(image.tobytes(), set()).add(split)
    assert len(splits) == 45
    assert all(len(held) == 1 for held in splits.values())


def write_groups(folder: Path, rows: list[tuple[str, str]], columns: tuple[str, ...] = ("file", "group")) -> None:
    with (folder / own.GROUPS).open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def grouped(folder: Path, group: Callable[[str, int], str]) -> list[tuple[str, str]]:
    files = sorted(folder.rglob("*.png"))
    return [(str(file.relative_to(folder)), group(file.parent.name, int(file.stem))) for file in files]


def test_a_group_is_in_one_split(home: Path) -> None:
    folder = fill(home / "patients", {"a": 30, "b": 30})
    rows = grouped(folder, lambda name, index: f"patient {index // 3}" if index < 6 else f"{name} {index // 2}")
    write_groups(folder, rows)
    found = splits_of(opened(folder))
    held: dict[str, set[str]] = {}
    for name, group in rows:
        held.setdefault(group, set()).add(found[pixels_of(folder / name)])
    assert all(len(splits) == 1 for splits in held.values())
    assert set.union(*held.values()) == {"train", "val", "test"}
    without = folder.with_name("without")
    shutil.copytree(folder, without, ignore=shutil.ignore_patterns(own.GROUPS))
    assert splits_of(opened(without)) != found


@pytest.fixture
def divided(home: Path) -> Path:
    for place, (split, count) in enumerate((("train", 6), ("val", 3), ("test", 4))):
        fill(home / "divided" / split, {"a": count, "b": count}, mode="RGB", first=100 * place)
    return home / "divided"


def test_a_folders_own_splits_are_taken(divided: Path) -> None:
    (divided / "LICENCE").write_text("CC0")
    found = opened(divided, None)
    for split, count in (("train", 6), ("val", 3), ("test", 4)):
        assert np.bincount(found.labels(split)).tolist() == [count, count]
        for image, label in zip(found.images(split), found.labels(split), strict=True):
            assert image.tobytes() in {pixels_of(file) for file in (divided / split / "ab"[label]).iterdir()}
    write_groups(divided, grouped(divided, lambda name, index: f"{name}{index}"))
    with pytest.raises(BadInput, match=r"divided: the group a0 is in test and in train; put all its images into one"):
        opened(divided)


def refuse(path: Path, line: str, **options: object) -> None:
    with pytest.raises(BadInput, match=line) as refused:
        opened(path, **options)
    assert len(refused.value.lines) == 1
    assert "\n" not in str(refused.value)
    unpacked = Path(os.environ["MEDMNIST_ROOT"]) / "unpacked"
    assert not [left for left in unpacked.glob("*") if left.is_dir()]


def test_bad_folders_are_refused_in_one_line(scans: Path) -> None:
    file = scans / "b" / "3.png"

    def broken(line: str, **options: object) -> Iterator[None]:
        kept = scans.with_name("kept")
        shutil.copytree(scans, kept)
        yield
        refuse(scans, line, **options)
        shutil.rmtree(scans)
        kept.rename(scans)

    for _ in broken(r"images of mixed sizes: 12 x 12 px in grey in a/0.png, 14 x 12 px in grey in b/3.png; expected"):
        Image.new("L", (14, 12)).save(file)
    for _ in broken(r"images of mixed channels: 12 x 12 px in grey in a/0.png, 12 x 12 px in colour in b/3.png"):
        Image.new("RGB", (SIZE, SIZE)).save(file)
    for _ in broken(r"my scans/a/0.png: 12 x 10 px in grey; expected square images of 8 to 1024 px"):
        for image in scans.rglob("*.png"):
            Image.new("L", (12, 10)).save(image)
    for _ in broken(r"b/3.png: has grey values of more than 8 bits; state the values"):
        Image.new("I;16", (SIZE, SIZE)).save(file)
    for _ in broken(r"a/0.png: has 8 bits; a window is for files of more", window=(0.0, 4095.0)):
        pass
    for _ in broken(r"my scans: images of 12 px, not of 28 px; ask for 12 px, or resize them first", size=28):
        pass
    for _ in broken(r"b/3.png: no image that can be read"):
        file.write_bytes(b"text")
    for _ in broken(r"b/notes.txt: no image by its ending \(.png.*\); move it elsewhere"):
        (scans / "b" / "notes.txt").write_text("text")
    for _ in broken(r"lone.png: lies in no class's folder; expected .*my scans/CLASS/lone.png"):
        shutil.copyfile(file, scans / "lone.png")
    for _ in broken(r"my scans: train has no image of the class d; add images"):
        (scans / "d").mkdir()
    for _ in broken(r"my scans: train has no image of the class d; add images"):
        (scans / "d").mkdir()
        for index in range(2):
            Image.new("L", (SIZE, SIZE), index).save(scans / "d" / f"{index}.png")
    for _ in broken(r"my scans/d: a symbolic link to a folder; put the folder itself there"):
        (scans / "d").symlink_to(scans / "a")
    for _ in broken(r"its name is not UTF-8; rename it"):
        Path(os.fsdecode(bytes(scans / "b") + b"/\xff.png")).write_bytes(file.read_bytes())
    for _ in broken(r"my scans: has 1 folders of classes; expected at least 2"):
        shutil.rmtree(scans / "b")
        shutil.rmtree(scans / "c")
    for _ in broken(r"my scans: has the folders a, b, c, val; expected train, val and test, or one per class"):
        (scans / "val").mkdir()
    for _ in broken(r"my scans: has 0 folders of classes; expected at least 2"):
        for name in "abc":
            shutil.rmtree(scans / name)
    for _ in broken(r"my scans: holds no image files"):
        for image in scans.rglob("*.png"):
            image.unlink()


def test_a_bad_file_of_groups_is_refused_in_one_line(scans: Path) -> None:
    rows = grouped(scans, lambda name, index: f"{name}{index}")
    for wrong, line in (
        ([*rows, ("a/99.png", "x")], "a/99.png is no image of the folder; expected a path as in"),
        ([*rows, ("/etc/passwd", "x")], "/etc/passwd is no image of the folder; expected a path as in"),
        (rows[1:], "says no group of a/0.png; give every image one"),
        ([*rows[1:], (rows[0][0], "")], "a/0.png has no group; give it one"),
        ([*rows, (rows[0][0], "x")], "a/0.png has two groups; give it one"),
    ):
        write_groups(scans, wrong)
        refuse(scans, rf"groups\.csv: {line}")
    write_groups(scans, rows, ("image", "patient"))
    refuse(scans, r"groups\.csv: has the columns image, patient; expected file,group")
    (scans / own.GROUPS).write_bytes(b"file,group\n\xff\xfe,x\n")
    refuse(scans, r"groups\.csv: no CSV")
    write_groups(scans, [(name, "one") for name, _ in rows])
    refuse(scans, "my scans: train has no image of the class a; split the class's groups")
    (scans / own.GROUPS).rename(scans / "Groups.csv")
    refuse(scans, r"Groups\.csv: not known; groups are read from groups\.csv")


def test_how_images_were_split_is_said(scans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened(scans, None)
    assert "no groups.csv: images are split one by one" in capsys.readouterr().err
    write_groups(scans, grouped(scans, lambda name, index: f"{name}{index // 2}"))
    found = opened(scans, None)
    counts = ", ".join(f"{len(found.labels(split))} {split}" for split in ("train", "val", "test"))
    assert re.search(rf"images: {counts}; groups: \d+ train, \d+ val, \d+ test", capsys.readouterr().err)


def test_a_window_that_shows_nothing_is_refused(scans: Path) -> None:
    for place, file in enumerate(scans.rglob("*.png")):
        Image.fromarray(np.full((SIZE, SIZE), 100 + place, np.uint16)).save(file)
    refuse(scans, r"through --window=50000.0:60000.0 more than 99% of the pixels are 0 or 255", window=(5e4, 6e4))
    assert opened(scans, None, window=(0.0, 4095.0)).window == (0.0, 4095.0)


def test_an_array_that_was_changed_is_made_again(scans: Path) -> None:
    found = opened(scans)
    whole = (found.folder / "test_images.npy").read_bytes()
    content = bytearray(whole)
    content[-1] ^= 1
    (found.folder / "test_images.npy").write_bytes(content)
    assert opened(scans).digest == found.digest
    assert (found.folder / "test_images.npy").read_bytes() == whole
    (found.folder / "test_images.npy").write_bytes(content[:-1])
    shutil.rmtree(scans)
    with pytest.raises(BadInput, match="not unpacked on this machine"):
        data.open_dataset(found.unpacked, SIZE)


def test_dicom_files_are_read_through_the_window_of_each(home: Path) -> None:
    rng, shown = np.random.default_rng(0), set()
    for name in "ab":
        (home / "ct" / name).mkdir(parents=True)
        for index in range(5):
            values = rng.integers(0, 2000, (SIZE, SIZE), np.uint16)
            centre, rescaled = 100.0 * index, {"RescaleSlope": 1.0, "RescaleIntercept": -1000.0}
            window = {"WindowCenter": centre, "WindowWidth": 800.0, "VOILUTFunction": "LINEAR_EXACT"}
            dicom(home / "ct" / name / f"{index}.dcm", values, **rescaled, **window)
            share = (values - 1000.0 - centre) / 800 + 0.5
            shown.add(np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8).tobytes())
    found = opened(home / "ct", window="file")
    assert (found.window, found.channels) == ("file", 1)
    assert set(splits_of(found)) == shown
    shutil.rmtree(found.folder)
    refuse(home / "ct", r"a/0\.dcm: has grey values of 16 bits .*; or file: the file's own")


def test_the_window_is_part_of_the_set(home: Path, stage: Stage) -> None:
    rng = np.random.default_rng(0)
    for name in "ab":
        (home / "deep" / name).mkdir(parents=True)
        for index in range(5):
            Image.fromarray(rng.integers(0, 4096, (SIZE, SIZE), np.uint16)).save(home / "deep" / name / f"{index}.tif")
    words = ("train", "data", "prepare", str(home / "deep"), "--json")
    refused = stage(*words)
    assert refused.returncode == 2
    assert "--window LOW:HIGH" in refused.stderr.splitlines()[-1]
    found = {}
    for window in ("0:4095", "-1000:400"):
        done = stage(*words, "--window", window)
        assert done.returncode == 0, done.stderr
        told = msgspec.json.decode(done.stdout)
        assert (told["dataset"], told["size"], told["classes"]) == ("deep", SIZE, ["a", "b"])
        found[told["digest"]] = Path(told["folder"])
    assert len(found) == len(set(found.values())) == 2
    manifests = [msgspec.json.decode((folder / "manifest.json").read_bytes()) for folder in found.values()]
    assert [manifest["window"] for manifest in manifests] == [[0, 4095], [-1000, 400]]
