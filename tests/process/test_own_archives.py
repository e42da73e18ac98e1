"""An `.npz` of one's own as a data set: which layouts are taken, and what is refused in one line."""

from pathlib import Path

import numpy as np
import pytest
from test_own_images import SIZE, fill, opened, refuse

from medserve.errors import BadInput
from train import data


def archive(path: Path, channels: int = 3, **changes: object) -> Path:
    shape = (SIZE, SIZE) if channels == 1 else (SIZE, SIZE, channels)
    made: dict[str, object] = {}
    for place, (split, count) in enumerate((("train", 9), ("val", 3), ("test", 6))):
        made[f"{split}_images"] = np.random.default_rng(place).integers(0, 256, (count, *shape), np.uint8)
        made[f"{split}_labels"] = np.arange(count)[:, None] % 3
    made |= changes
    np.savez(path, **{name: value for name, value in made.items() if value is not None})
    return path


@pytest.mark.parametrize("channels", [1, 3])
def test_an_archive_of_medmnists_layout_is_taken(home: Path, channels: int) -> None:
    path = archive(home / "cells.v2.npz", channels, groups=np.repeat(np.arange(6), 3))
    found = opened(path)
    assert (found.name, found.classes, found.channels) == ("cells.v2", ("0", "1", "2"), channels)
    assert found.unpacked.startswith("cells.v2-")
    with np.load(path) as given:
        for split in ("train", "val", "test"):
            assert np.array_equal(found.images(split).reshape(given[f"{split}_images"].shape), given[f"{split}_images"])
            assert np.array_equal(found.labels(split), given[f"{split}_labels"][:, 0])
    names = {
        f"{split}_groups": np.array([f"{split}{index}" for index in range(count)])
        for split, count in (("train", 9), ("val", 3), ("test", 6))
    }
    assert opened(archive(home / "named.npz", channels, **names)).digest == found.digest


def test_an_archive_of_several_labels_per_image_has_that_task(home: Path) -> None:
    labels = {"train": 9, "val": 3, "test": 6}
    made = {f"{split}_labels": np.arange(2 * count).reshape(count, 2) // 2 % 2 for split, count in labels.items()}
    found = opened(archive(home / "signs.npz", 1, **made))
    assert (found.task, found.classes) == ("multi-label", ("0", "1"))
    assert np.array_equal(found.labels("test"), made["test_labels"])
    assert opened(archive(home / "cells.npz")).task == "multi-class"


BAD_ARCHIVES: dict[str, tuple[dict[str, object], str]] = {
    "labels too high": ({"val_labels": np.arange(1, 4)}, "val_labels holds 1 to 3; expected 0 to 2"),
    "labels too low": ({"train_labels": np.arange(9) % 3 - 1}, "train_labels holds -1 to 1"),
    "a label far too high": ({"train_labels": np.full(9, 10**12)}, "train_labels holds 1000000000000 to"),
    "an absent class": ({"test_labels": np.arange(6) % 2}, r"test_labels has no image of class 2 \(2\)"),
    "several labels": ({"train_labels": np.zeros((9, 14), int)}, "train_labels has no image of class 0"),
    "16 bits": ({"train_images": np.zeros((9, SIZE, SIZE), np.uint16)}, "train_images is uint16"),
    "not square": ({"train_images": np.zeros((9, SIZE, 13), np.uint8)}, "expected uint8"),
    "mixed sizes": ({"val_images": np.zeros((3, 14, 14, 3), np.uint8)}, "val_images is uint8"),
    "mixed channels": ({"test_images": np.zeros((6, SIZE, SIZE), np.uint8)}, "test_images is uint8"),
    "no array": ({"val_images": None}, "has no array 'val_images'"),
    "a group in two splits": ({"groups": np.repeat(np.arange(3), 6)}, "group 1 is in train and in val; put all"),
    "groups of another length": ({"groups": np.arange(17)}, r"groups is int64 \(17,\); expected .*\(18,\)"),
    "groups of one split": ({"val_groups": np.arange(3)}, "has val_groups; expected groups of every split"),
    "pickled groups": ({"groups": np.array([{}] * 18, object)}, "groups"),
    "too small": ({f"{split}_images": np.zeros((n, 4, 4), np.uint8) for split, n in (("train", 9), ("val", 3),
                  ("test", 6))}, "images of 4 px; expected 8 to 1024"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "line"), BAD_ARCHIVES.values(), ids=BAD_ARCHIVES)
def test_a_bad_archive_is_refused_in_one_line(home: Path, changes: dict[str, object], line: str) -> None:
    path = archive(home / "cells.npz", **changes)
    refuse(path, rf"cells\.npz: .*{line}")


def test_what_is_no_archive_is_refused_in_one_line(home: Path) -> None:
    whole = archive(home / "cells.npz").read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        (home / "cells.npz").write_bytes(content)
        refuse(home / "cells.npz", r"cells\.npz: damaged, or not an npz archive \(.*\); write it again")
    refuse(home / "none.npz", r"none\.npz: no such folder or file")
    refuse(archive(home / "cells.npz"), "an archive holds uint8 images", window=(0.0, 1.0))


def test_a_name_of_the_table_is_not_taken(home: Path) -> None:
    for path in (archive(home / "bloodmnist.npz"), fill(home / "synthetic", {"a": 5, "b": 5})):
        refuse(path, f"is called as the data set {path.stem} of `medserve list`; rename it")
    with pytest.raises(BadInput, match="synthetic: a window is for image files of one's own"):
        data.open_dataset("synthetic", 28, window=(0.0, 1.0))
