import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from medserve.errors import BadInput, CannotRun
from medserve.tables import DATASETS
from train import archives, data

SPLITS = {"train": 24, "val": 8, "test": 16}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDMNIST_ROOT", str(tmp_path))
    return tmp_path


def arrays(size=28, name="bloodmnist", **splits):
    """The arrays of a small archive in MedMNIST's form: every class in every split."""
    spec = DATASETS[name]
    shape = (size, size) if spec.channels == 1 else (size, size, spec.channels)
    rng = np.random.default_rng(size)
    made = {}
    for split, count in (splits or SPLITS).items():
        made[f"{split}_images"] = rng.integers(0, 256, (count, *shape), np.uint8)
        labels = (np.arange(count) % spec.classes).astype(np.uint8)
        several = (np.arange(spec.classes) + labels[:, None]) % 3 == 0
        made[f"{split}_labels"] = several.astype(np.uint8) if spec.task == "multi-label" else labels[:, None]
    return made


def archive(folder, size=28, **changes):
    path = folder / ("bloodmnist.npz" if size == 28 else f"bloodmnist_{size}.npz")
    np.savez(path, **(arrays(size) | changes))
    return path


def opened(size=28, **options):
    return data.open_dataset("bloodmnist", size, unofficial=True, **options)


def leftovers(folder):
    return [path for path in folder.rglob("*") if "partial" in path.name]


@pytest.mark.parametrize("size", [28, 64])
def test_an_archive_opens_with_its_content(home, size):
    archive(home, size)
    found = opened(size)
    for split in SPLITS:
        assert np.array_equal(found.images(split), arrays(size)[f"{split}_images"])
        assert np.array_equal(found.labels(split), arrays(size)[f"{split}_labels"][:, 0])
        assert found.labels(split).dtype == np.int64
    assert found.unofficial
    assert found.classes[0] == "basophil"
    assert not found.images("train").flags.writeable
    assert np.array_equal(found.take("test", np.array([3, 3, 0])), arrays(size)["test_images"][[3, 3, 0]])
    assert np.array_equal(np.load(found.folder / "val_images.npy"), found.images("val"))


@pytest.mark.parametrize("name", [name for name, spec in DATASETS.items() if spec.sizes])
def test_every_data_set_opens_in_medmnists_layout(home, name):
    """One row each, and nothing else: one channel is stored without a dimension of its own."""
    given = arrays(name=name, train=24, val=24, test=24)
    np.savez(home / f"{name}.npz", **given)
    found = data.open_dataset(name, 28, unofficial=True)
    channels = DATASETS[name].channels
    assert found.images("test").shape == (24, 28, 28, channels)
    assert np.array_equal(found.images("test").reshape(given["test_images"].shape), given["test_images"])
    assert len(found.classes) == DATASETS[name].classes
    labels = given["test_labels"] if DATASETS[name].task == "multi-label" else given["test_labels"][:, 0]
    assert np.array_equal(found.labels("test"), labels)
    assert found.labels("test").dtype == np.int64
    other = (24, 28, 28, 3) if channels == 1 else (24, 28, 28)
    np.savez(home / f"{name}.npz", **given | {"train_images": np.zeros(other, np.uint8)})
    with pytest.raises(BadInput, match="train_images is uint8"):
        data.open_dataset(name, 28, unofficial=True)


def test_it_is_unpacked_once_and_then_needs_no_archive(home):
    path = archive(home)
    first = opened()
    made = first.folder.stat().st_mtime_ns
    path.unlink()
    assert opened(thorough=True).digest == first.digest
    assert first.folder.stat().st_mtime_ns == made


def test_the_digest_is_of_the_arrays_not_of_the_file(home):
    path = archive(home)
    first = opened().digest
    np.savez_compressed(path, **arrays())
    assert opened().digest == first
    archive(home, test_labels=arrays()["test_labels"][::-1])
    assert opened().digest != first


def test_another_md5_is_refused_unless_unofficial(home):
    archive(home)
    with pytest.raises(BadInput, match="bloodmnist.npz.*not the official.*--unofficial"):
        data.open_dataset("bloodmnist", 28)
    assert not (home / "unpacked" / "bloodmnist").exists()
    opened()
    with pytest.raises(BadInput, match="not the official"):
        data.open_dataset("bloodmnist", 28)


def test_the_official_md5_makes_it_official_and_holds_it_to_the_table(home, monkeypatch):
    md5 = hashlib.md5(archive(home).read_bytes()).hexdigest()
    row = archives.official("bloodmnist", 28)
    monkeypatch.setattr(data, "official", lambda *_: msgspec.structs.replace(row, md5=md5))
    with pytest.raises(BadInput, match=r"has \(24, 8, 16\) images per split; expected \(11959, 1712, 3421\)"):
        data.open_dataset("bloodmnist", 28)
    assert not (home / "unpacked" / "bloodmnist").exists()
    monkeypatch.setitem(DATASETS, "bloodmnist", msgspec.structs.replace(DATASETS["bloodmnist"], **SPLITS))
    assert not data.open_dataset("bloodmnist", 28).unofficial


GREY = np.zeros((24, 28, 28), np.uint8)
BAD = {
    "grey images": ({"train_images": GREY}, r"train_images is uint8 \(24, 28, 28\); expected uint8 \(n, 28, 28, 3\)"),
    "grey with a channel": ({"train_images": GREY[..., None]}, r"train_images is uint8 \(24, 28, 28, 1\)"),
    "float images": ({"val_images": np.zeros((8, 28, 28, 3), np.float32)}, "val_images is float32"),
    "another size": ({"test_images": np.zeros((16, 64, 64, 3), np.uint8)}, r"expected uint8 \(n, 28, 28, 3\)"),
    "fewer labels": ({"test_labels": np.zeros((15, 1), np.uint8)}, r"test_labels .*expected integers \(16, 1\)"),
    "labels of floats": ({"test_labels": np.zeros((16, 1))}, "test_labels is float64"),
    "many labels an image": ({"test_labels": np.zeros((16, 14), np.uint8)}, "one per image"),
    "a label too high": ({"val_labels": np.arange(1, 9)[:, None]}, "val_labels holds 1 to 8; expected 0 to 7"),
    "a label too low": ({"val_labels": np.arange(-1, 7)[:, None]}, "val_labels holds -1 to 6"),
    "an absent class": ({"val_labels": np.minimum(np.arange(8), 6)}, r"no image of class 7 \(platelet\)"),
    "an empty split": (
        {"val_images": np.zeros((0, 28, 28, 3), np.uint8), "val_labels": np.zeros((0, 1), np.uint8)},
        "val_labels is empty",
    ),
    "pickled objects": ({"train_labels": np.array([{}] * 24, object)}, "train_labels"),
    "Fortran order": ({"train_images": np.asfortranarray(arrays()["train_images"])}, "Fortran order"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_a_bad_archive_is_refused_in_one_line(home, changes, message):
    archive(home, **changes)
    with pytest.raises(BadInput, match=message) as caught:
        opened()
    assert "bloodmnist.npz" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert os.listdir(home / "unpacked") == [".bloodmnist.lock"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((24, 1), np.uint8), r"val_labels is uint8 \(24, 1\); expected integers \(24, 14\), 0 or 1 per class"),
        (np.full((24, 14), 2, np.uint8), "val_labels holds 2 to 2; expected 0 to 1"),
        (np.eye(24, 14, k=-1, dtype=np.uint8)[:, ::-1] * (np.arange(14) != 13), r"no image of class 13 \(hernia\)"),
        (np.eye(24, 14, dtype=np.uint8) | (np.arange(14) == 0).astype(np.uint8), "no image without class 0"),
    ],
)
def test_several_labels_per_image_have_the_layout_and_values_of_theirs(home, labels, message):
    given = arrays(name="chestmnist", train=24, val=24, test=24)
    np.savez(home / "chestmnist.npz", **given | {"val_labels": labels})
    with pytest.raises(BadInput, match=message):
        data.open_dataset("chestmnist", 28, unofficial=True)


def test_a_missing_array_is_named(home):
    few = arrays()
    del few["val_labels"]
    np.savez(home / "bloodmnist.npz", **few)
    with pytest.raises(BadInput, match="no array 'val_labels'"):
        opened()


@pytest.mark.parametrize("compress", [np.savez, np.savez_compressed])
def test_a_damaged_archive_is_never_a_crash(home, compress):
    path = home / "bloodmnist.npz"
    compress(path, **arrays())
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    # Archives broken off, and archives with sixteen bytes flipped within a small stretch, headers included.
    damaged = [whole[:cut] for cut in (0, 1, 100, len(whole) // 2, len(whole) - 1)]
    for place in (*rng.integers(0, len(whole) - 64, 20), 0, 30, len(whole) - 60, len(whole) - 300):
        broken = bytearray(whole)
        for offset in rng.integers(0, 64, 16):
            broken[place + offset] ^= 0xFF
        damaged.append(bytes(broken))
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            opened()
        except BadInput:
            refused += 1
            assert not (home / "unpacked" / "bloodmnist").exists()
        else:
            # Bytes that nobody reads, such as a time of day.
            shutil.rmtree(home / "unpacked" / "bloodmnist")
    assert refused >= len(damaged) - 4


def test_a_missing_file_says_how_to_get_it(home):
    with pytest.raises(BadInput, match=r"bloodmnist_64.npz: no such file.*medserve data fetch bloodmnist --size 64"):
        opened(64)


def test_names_and_sizes_that_are_not_there_are_refused(home):
    with pytest.raises(BadInput, match=r"unknown dataset 'bloodmnits' \(did you mean bloodmnist\?\)"):
        data.open_dataset("bloodmnits", 28)
    with pytest.raises(BadInput, match="bloodmnist does not come at 29 px"):
        data.open_dataset("bloodmnist", 29)


def test_an_array_that_was_changed_is_made_again(home, capfd):
    archive(home)
    first = opened()
    path = first.folder / "test_images.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert opened().digest == first.digest
    assert "SHA-256" in capfd.readouterr().err
    assert np.array_equal(np.load(path), arrays()["test_images"])


def test_a_copied_folder_is_checked_once(home):
    archive(home)
    digest = opened().digest
    manifest = home / "unpacked" / "bloodmnist" / "manifest.json"
    os.utime(manifest.with_name("test_images.npy"), ns=(1, 1))
    before = manifest.read_bytes()
    assert opened().digest == digest
    assert manifest.read_bytes() != before


def test_what_a_killed_process_left_is_swept(home):
    archive(home)
    left = home / "unpacked" / ".bloodmnist.123.partial"
    left.mkdir(parents=True)
    other = home / "unpacked" / ".bloodmnist_64.123.partial"
    other.mkdir()
    opened()
    assert not left.exists()
    assert other.exists()


def test_two_processes_at_once_make_one_folder(home):
    archive(home)
    code = "from train.data import open_dataset as o; print(o('bloodmnist', 28, unofficial=True).digest)"
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [process.communicate(timeout=60)[0] for process in both]
    assert answers[0] == answers[1] == f"{opened().digest}\n"
    assert not leftovers(home)


def test_too_little_room_is_said_before_anything_is_written(home, monkeypatch):
    archive(home)
    usage = shutil.disk_usage(home)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(CannotRun, match="needs 0 MB, the disk has 0 MB free; free some, or set MEDMNIST_ROOT"):
        opened()
    assert not leftovers(home)


def test_a_disk_that_fills_up_leaves_no_half_folder(home):
    archive(home)
    # A limit on the size of files stands for the full disk: both end a write with an error.
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000));"
        "from medserve.errors import main; from train.data import open_dataset;"
        "main(lambda: open_dataset('bloodmnist', 28, unofficial=True))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "while writing 0 MB; free some" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(home / "unpacked") == [".bloodmnist.lock"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_stays_bounded_on_a_large_set(home):
    count = 25_000
    large = {"train_images": np.zeros((count, 64, 64, 3), np.uint8), "train_labels": np.arange(count) % 8}
    np.savez_compressed(home / "bloodmnist_64.npz", **(arrays(64) | large))
    code = """if True:
        import sys
        import numpy as np
        from train import data

        def peak():
            lines = open("/proc/self/status").read().splitlines()
            return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))

        before = peak()
        opened = data.open_dataset("bloodmnist", 64, unofficial=True)
        data.MAX_RESIDENT_BYTES = int(sys.argv[1]) << 20
        for batch in np.random.default_rng(0).permutation(25_000).reshape(-1, 100):
            opened.take("train", batch)
        print(peak() - before)
    """

    def grown(megabytes):
        words = [sys.executable, "-c", code, str(megabytes)]
        return int(subprocess.run(words, capture_output=True, text=True, check=True, timeout=120).stdout)

    # The first call unpacks as well. Without the bound, all 300 MB of mapped images stay.
    assert grown(32) < 120
    assert grown(100_000) > 280


def test_synthetic_is_drawn_into_the_same_layout(home, monkeypatch):
    monkeypatch.setitem(DATASETS, "synthetic", msgspec.structs.replace(DATASETS["synthetic"], **SPLITS))
    found = data.open_dataset("synthetic", 20)
    assert found.images("train").shape == (24, 20, 20, 3)
    assert not found.unofficial
    shutil.rmtree(found.folder)
    assert data.open_dataset("synthetic", 20).digest == found.digest
    monkeypatch.setattr("train.synthetic.VERSION", "another")
    made = (found.folder / "manifest.json").stat().st_mtime_ns
    data.open_dataset("synthetic", 20)
    assert (found.folder / "manifest.json").stat().st_mtime_ns != made


def test_the_data_commands(home, stage, monkeypatch):
    archive(home)
    words = ("train", "data", "prepare", "bloodmnist", "--size", "28")
    done = stage(*words, "--unofficial", "--json")
    told = msgspec.json.decode(done.stdout)
    assert told["folder"] == str(home / "unpacked" / "bloodmnist")
    assert (told["digest"], told["unofficial"], len(told["classes"])) == (opened().digest, True, 8)
    refused = stage(*words)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ")
    assert "--unofficial" in refused.stderr
    rows = {row["name"]: row for row in msgspec.json.decode(stage("train", "data", "list", "--json").stdout)}
    assert rows["bloodmnist"]["here"] == [28]
    assert "bloodmnist" in stage("train", "data", "list").stdout
    assert "drawn, not fetched" in stage("train", "data", "fetch", "synthetic").stderr
