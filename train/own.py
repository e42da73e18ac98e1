"""Images of one's own as a data set: a folder of image files, or an .npz in MedMNIST's layout.

    FOLDER/CLASS/.../FILE              medserve splits: see `_split`
    FOLDER/{train,val,test}/CLASS/...  the folder's own splits are taken
    FOLDER/groups.csv                  optional, columns file,group: all images of a group (a patient) are in one split

Nothing is resized, and files of more than 8 bits are read through a window that the user states.
"""

import csv
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medserve import image_files
from medserve.errors import BadInput
from medserve.models import Split
from medserve.progress import Progress
from medserve.spec import Window, window_words
from medserve.store import encode, sha256
from medserve.tables import dataset_name
from train import arrays
from train.archives import say
from train.arrays import SPLITS

RULE = "1"
"""Version of what is made of a source: another one makes its folder again."""
GROUPS = "groups.csv"
CLIPPED = 0.99
"""Share of the pixels at the ends of a window above which it cannot be that of the files."""
SHARES: dict[Split, float] = {"val": 0.1, "test": 0.2}
"""Of the units of a class, at least one each; the rest is for training."""


class Image(NamedTuple):
    """A file of a folder, the name of its class, and its split where the folder has its own."""

    path: Path
    label: str
    split: Split | None


class Survey(NamedTuple):
    """What a source holds: side in pixels, class names, bytes of the arrays, and what writes these into a folder."""

    size: int
    classes: tuple[str, ...]
    required: int
    write: Callable[[Path], None]


class Source:
    """The folder or archive `given` by its path, whose files of more than 8 bits are read through `window`.

    Raises BadInput where there is no such thing.
    """

    def __init__(self, given: str, window: Window | None) -> None:
        self.path = path = Path(given)
        self.name, self.window = dataset_name(given), window
        self.groups: dict[Path, str] = {}
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if not _is_hidden(file, path))
            if linked := [one for one in found if one.is_symlink() and one.is_dir()]:
                raise BadInput(f"{linked[0]}: a symbolic link to a folder; put the folder itself there")
            if odd := [one for one in found if any("\ud800" <= sign <= "\udfff" for sign in str(one))]:
                raise BadInput(f"{odd[0]}: its name is not UTF-8; rename it")
            self.files = [file for file in found if file.is_file()]
        elif path.is_file():
            self.files = [path]
            if window is not None:
                raise BadInput(f"{path}: an archive holds uint8 images; a window is for a folder of image files")
        else:
            raise BadInput(f"{path}: no such folder or file (from {Path.cwd()})")

    @cached_property
    def listing(self) -> str:
        """SHA-256 of path, size and times of every file: while it stays, the files need not be read again."""
        found = [(file, file.stat()) for file in self.files]
        states = [(str(file), state.st_size, state.st_mtime_ns, state.st_ctime_ns) for file, state in found]
        return hashlib.sha256(encode((RULE, self.window, str(self.path.resolve()), states))).hexdigest()

    @cached_property
    def contents(self) -> dict[Path, str]:
        """SHA-256 of every file."""
        progress = Progress(f"read {self.name}", len(self.files), "file")
        found = {}
        for done, file in enumerate(self.files, 1):
            found[file] = sha256(file)
            progress.update(done)
        return found

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what the arrays are made of: all files with their relative paths, and the window."""
        named = sorted((str(file.relative_to(self.path)), digest) for file, digest in self.contents.items())
        return hashlib.sha256(encode((RULE, self.window, named))).hexdigest()

    def survey(self) -> Survey:
        """Check the source, as far as this takes no decoding. Raises BadInput, or one of `arrays.DAMAGE_ERRORS`."""
        return self._survey_folder() if self.path.is_dir() else self._survey_archive()

    def _survey_archive(self) -> Survey:
        required = arrays.check_members(self.path)
        size, channels, count, task = arrays.survey(self.path)
        if not 8 <= size <= 1024:
            raise BadInput(f"{self.path}: images of {size} px; expected 8 to 1024")
        classes = tuple(map(str, range(count)))

        def write(folder: Path) -> None:
            counts = arrays.unpack(self.path, folder, size, classes, channels, task)
            found = arrays.groups(self.path, counts)
            _check_groups(self.path, ((str(group), split) for split in found for group in np.unique(found[split])))

        return Survey(size, classes, required, write)

    def _survey_folder(self) -> Survey:
        images, classes = self._images()
        first, shape = images[0].path, image_files.shape(images[0].path, self.window)
        for image in images[1:]:
            if (other := image_files.shape(image.path, self.window)) != shape:
                differ = "sizes" if other[:2] != shape[:2] else "channels"
                raise BadInput(
                    f"{self.path}: images of mixed {differ}: {_words(shape)} in {first.relative_to(self.path)}, "
                    f"{_words(other)} in {image.path.relative_to(self.path)}; "
                    "expected one size, and all grey or all in colour"
                )
        if shape[0] != shape[1] or not 8 <= shape[0] <= 1024:
            raise BadInput(f"{first}: {_words(shape)}; expected square images of 8 to 1024 px")
        splits = self._split(images)
        for split in SPLITS:
            held = {image.label for image in splits[split]}
            if lacking := [name for name in classes if name not in held]:
                mend = "split the class's groups" if self.groups else "add images of that class"
                raise BadInput(f"{self.path}: {split} has no image of the class {lacking[0]}; {mend}")

        def write(folder: Path) -> None:
            progress, done, ends = Progress(f"unpack {self.name}", len(images), "image"), 0, 0

            def pixels(image: Image) -> NDArray[np.uint8]:
                nonlocal ends
                found = image_files.read(image.path, self.window)
                ends += int(((found == 0) | (found == 255)).sum())
                return found

            for split in SPLITS:
                labels = np.array([classes.index(image.label) for image in splits[split]], np.int64)
                arrays.write_split(folder, split, labels, map(pixels, splits[split]))
                progress.update(done := done + len(labels))
            if self.window is not None and ends > CLIPPED * len(images) * prod(shape):
                raise BadInput(
                    f"{self.path}: through {window_words(self.window)[0]} more than {CLIPPED:.0%} of the pixels "
                    "are 0 or 255; is it that of these files?"
                )
            counts = {split: len(splits[split]) for split in SPLITS}
            held = {split: len({self.groups[image.path] for image in splits[split]}) for split in SPLITS if self.groups}
            said = f"; groups: {_counted(held)}" if held else f"; no {GROUPS}: images are split one by one"
            say(f"{self.name}: images: {_counted(counts)}{said if images[0].split is None or held else ''}")

        return Survey(shape[0], classes, len(images) * prod(shape), write)

    def _images(self) -> tuple[list[Image], tuple[str, ...]]:
        """The image files, and the names of the classes. Raises BadInput for another layout."""
        top = {folder.name for folder in self._folders("*")}
        depth = 1 if top & set(SPLITS) else 0
        if depth and top != set(SPLITS):
            raise BadInput(
                f"{self.path}: has the folders {', '.join(sorted(top))}; expected train, val and test, or one per class"
            )
        classes = tuple(sorted({folder.name for folder in self._folders("*/*" if depth else "*")}))
        if len(classes) < 2:
            raise BadInput(
                f"{self.path}: has {len(classes)} folders of classes; expected at least 2, each with image files"
            )
        found = []
        for file in self.files:
            *folders, name = file.relative_to(self.path).parts
            if file.suffix.lower() not in image_files.ENDINGS:
                if not folders:  # groups.csv, a licence
                    if file.suffix.lower() == ".csv" and name != GROUPS:
                        raise BadInput(f"{file}: not known; groups are read from {GROUPS}, and nothing else in .csv")
                    continue
                raise BadInput(f"{file}: no image by its ending ({', '.join(image_files.ENDINGS)}); move it elsewhere")
            if len(folders) <= depth:
                raise BadInput(
                    f"{file}: lies in no class's folder; expected {self.path}/{'train/' * depth}CLASS/{name}"
                )
            own_split = next((split for split in SPLITS if depth and split == folders[0]), None)
            found.append(Image(file, folders[depth], own_split))
        if not found:
            raise BadInput(f"{self.path}: holds no image files ({', '.join(image_files.ENDINGS)})")
        return found, classes

    def _folders(self, pattern: str) -> list[Path]:
        return [path for path in self.path.glob(pattern) if path.is_dir() and not _is_hidden(path, self.path)]

    def _split(self, images: list[Image]) -> dict[Split, list[Image]]:
        """The images of each split, ordered by the SHA-256 of their files.

        Where the folder has no splits of its own, its units are split: groups, or images, of which those with the same
        content are one unit. A unit counts to the class of its first image by path. In each class units are ordered by
        the SHA-256 of their name (of the group) or content; the first 10 % of them are for validation, the next 20 %
        for testing, at least one each.
        """
        groups = self.groups = self._groups(images)
        if images[0].split is not None:
            _check_groups(self.path, ((groups[image.path], str(image.split)) for image in images if groups))
            chosen = {image.path: image.split for image in images}
        else:
            keys = {
                image.path: _digest(groups[image.path]) if groups else self.contents[image.path] for image in images
            }
            classes: dict[str, dict[str, None]] = defaultdict(dict)
            first: dict[str, str] = {}
            for image in images:
                key = keys[image.path]
                classes[first.setdefault(key, image.label)][key] = None
            split_of: dict[str, Split] = {}
            for units in classes.values():
                ordered, at = sorted(units), 0
                for split, share in SHARES.items():
                    count = max(1, round(share * len(ordered)))
                    split_of |= dict.fromkeys(ordered[at : at + count], split)
                    at += count
                split_of |= dict.fromkeys(ordered[at:], "train")
            chosen = {path: split_of[key] for path, key in keys.items()}
        ordered_images = sorted(images, key=lambda image: (self.contents[image.path], image.path))
        return {split: [image for image in ordered_images if chosen[image.path] == split] for split in SPLITS}

    def _groups(self, images: list[Image]) -> dict[Path, str]:
        """The group of each image, by its path; empty without a file of groups. Raises BadInput for a bad one."""
        table = self.path / GROUPS
        if not table.is_file():
            return {}
        try:
            with table.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                columns, rows = reader.fieldnames or (), list(reader)
        except (csv.Error, UnicodeDecodeError) as error:
            raise BadInput(f"{table}: no CSV: {error}") from None
        if not {"file", "group"} <= set(columns):
            raise BadInput(f"{table}: has the columns {', '.join(columns)}; expected file,group")
        known, found = {image.path for image in images}, dict[Path, str]()
        for row in rows:
            path, group = self.path / (row["file"] or ""), row["group"] or ""
            if path not in known:
                like = images[0].path.relative_to(self.path)
                raise BadInput(f"{table}: {row['file']} is no image of the folder; expected a path as in {like}")
            if not group or found.setdefault(path, group) != group:
                raise BadInput(f"{table}: {row['file']} has {'two groups' if group else 'no group'}; give it one")
        if lacking := sorted(known - set(found)):
            raise BadInput(f"{table}: says no group of {lacking[0].relative_to(self.path)}; give every image one")
        return found


def _check_groups(source: Path, pairs: Iterable[tuple[str, str]]) -> None:
    """Raise BadInput for the first group that is in two splits."""
    splits: dict[str, str] = {}
    for group, split in pairs:
        if (other := splits.setdefault(group, split)) != split:
            raise BadInput(
                f"{source}: the group {group} is in {other} and in {split}; put all its images into one split"
            )


def _counted(splits: Mapping[Split, int]) -> str:
    return ", ".join(f"{count} {split}" for split, count in splits.items())


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _words(shape: tuple[int, int, int]) -> str:
    return f"{shape[1]} x {shape[0]} px {'in colour' if shape[2] == 3 else 'in grey'}"
