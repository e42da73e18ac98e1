import os
import signal
import subprocess
import sys
import time

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from medserve.errors import BadInput, CannotRun
from medserve.models import Recipe
from medserve.scores import score
from medserve.store import read_checkpoint
from medserve.tables import ARCHITECTURES
from train import loop
from train.batches import augment, batches
from train.data import open_dataset
from train.frameworks import RANDOM

SPLITS = {"train": 100, "val": 16, "test": 24}
WORDS = ("train", "run", "--dataset", "bloodmnist", "--size", "28", "--unofficial")
TINY = ("--set", "batch=16", "--set", "epochs=10")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A root folder with a few bright and dark images under BloodMNIST's name."""
    folder = tmp_path_factory.mktemp("tiny")
    rng = np.random.default_rng(0)
    made = {}
    for split, count in SPLITS.items():
        labels = np.arange(count) % 8
        noise = rng.integers(0, 60, (count, 28, 28, 3))
        made[f"{split}_images"] = (noise + 24 * labels[:, None, None, None]).astype(np.uint8)
        made[f"{split}_labels"] = labels[:, None]
    np.savez(folder / "bloodmnist.npz", **made)
    return folder


@pytest.fixture
def data(tiny, monkeypatch):
    monkeypatch.setenv("MEDMNIST_ROOT", str(tiny))
    return open_dataset("bloodmnist", 28, unofficial=True)


@pytest.fixture(scope="module")
def whole(tiny, stage, tmp_path_factory):
    """The checkpoint of a training that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "tiny"
    done = stage(*WORDS, *TINY, "--out", str(out), MEDMNIST_ROOT=str(tiny))
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stderr
    return out


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10, 33, 1000])
def test_rates_are_those_of_torchs_one_cycle(steps):
    torch = pytest.importorskip("torch")
    recipe = Recipe(learning_rate=4e-3)
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.learning_rate, total_steps=steps)
    expected = [optimiser.param_groups[0]["lr"]]
    for _ in range(steps - 1):
        optimiser.step()
        schedule.step()
        expected.append(optimiser.param_groups[0]["lr"])
    found = loop.learning_rates(recipe, steps)
    assert found.dtype == np.float32
    assert found == pytest.approx(expected, rel=1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(2, 8))
def test_augmentation_is_transpose_flip_shift_of_each_image(seed, count, size):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, size, size, 3), np.uint8)
    flips, transposes = rng.random((2, count)) < 0.5, rng.random(count) < 0.5
    shifts = rng.integers(-(size - 1), size, (2, count))
    found = augment(images, flips, transposes, shifts)
    for index, image in enumerate(images):
        image = image.swapaxes(0, 1) if transposes[index] else image
        image = image[::-1] if flips[0, index] else image
        image = image[:, ::-1] if flips[1, index] else image
        padded = np.pad(image, ((size - 1, size - 1), (size - 1, size - 1), (0, 0)), "reflect")
        down, right = size - 1 - shifts[:, index]
        assert np.array_equal(found[index], padded[down : down + size, right : right + size])


def test_batches_follow_from_seed_and_epoch(data):
    def all_of(seed, epoch):
        made = list(batches(data, Recipe(batch=16, seed=seed), epoch))
        return np.concatenate([images for images, _ in made]), np.concatenate([labels for _, labels in made])

    images, labels = all_of(0, 3)
    again, same = all_of(0, 3)
    assert np.array_equal(images, again)
    assert np.array_equal(labels, same)
    assert not np.array_equal(labels, all_of(0, 4)[1])
    assert not np.array_equal(labels, all_of(1, 3)[1])


def test_an_epoch_shows_each_image_once_and_drops_the_incomplete_batch(data):
    recipe = Recipe(batch=16, flips=False, transposes=False, shift=0)
    known = {image.tobytes(): label for image, label in zip(data.images("train"), data.labels("train"), strict=True)}
    shown = {}
    for images, labels in batches(data, recipe, 0):
        assert images.shape == (16, 28, 28, 3)
        shown |= {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    assert len(shown) == 96
    assert shown.items() <= known.items()


def test_leaving_out_one_augmentation_changes_no_other(data):
    plain, flipped = (
        next(batches(data, Recipe(batch=16, flips=flips, transposes=False, shift=0), 0))[0] for flips in (False, True)
    )
    same = [np.array_equal(a, b) for a, b in zip(plain, flipped, strict=True)]
    assert 0 < sum(same) < 16
    assert np.array_equal(np.sort(plain.reshape(16, -1)), np.sort(flipped.reshape(16, -1)))


def test_the_checkpoint_keeps_its_contract(whole, data):
    checkpoint = read_checkpoint(whole)
    assert set(checkpoint.files) == {"weights.safetensors", "resume.safetensors", "test_scores.npy", "test_labels.npy"}
    assert checkpoint.name == "tiny"
    assert checkpoint.unofficial
    assert checkpoint.data_digest == data.digest
    assert checkpoint.recipe == Recipe(batch=16, epochs=10)
    assert [epoch.epoch for epoch in checkpoint.history] == list(range(1, 11))
    assert checkpoint.history[-1].loss < checkpoint.history[0].loss
    assert checkpoint.parameters == ARCHITECTURES["cnn"].parameters(8)
    scores = np.load(whole / "test_scores.npy")
    assert scores.dtype == np.float32
    assert scores.shape == (24, 8)
    assert scores.sum(1) == pytest.approx(1, abs=1e-5)
    labels = np.load(whole / "test_labels.npy")
    assert labels.dtype == np.int64
    assert np.array_equal(labels, data.labels("test"))
    assert checkpoint.test == score(labels, scores)
    assert checkpoint.images_per_second > 0
    assert "conv.weight" in " ".join(load_file(whole / "weights.safetensors"))
    assert not list(whole.parent.glob(".*"))


def kill_after(epoch, out, root):
    """Start the training and kill -9 it as soon as the state of `epoch` is there."""
    environment = {**os.environ, "MEDMNIST_ROOT": str(root)}
    command = [sys.executable, "-m", *WORDS, *TINY, "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        end = time.monotonic() + 120
        while not (out.parent / f".{out.name}.resume" / f"epoch-{epoch:06}").exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.002)
        process.kill()
        _, said = process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    return said


def test_a_training_killed_twice_ends_with_the_same_weights(whole, tiny, stage, tmp_path):
    out = tmp_path / "tiny"
    assert "resuming" not in kill_after(2, out, tiny)
    assert "resuming after epoch" in kill_after(6, out, tiny)
    done = stage(*WORDS, *TINY, "--out", str(out), MEDMNIST_ROOT=str(tiny))
    assert done.returncode == 0, done.stderr
    assert "resuming after epoch" in done.stderr
    for name in ("weights.safetensors", "resume.safetensors"):
        expected, found = load_file(whole / name), load_file(out / name)
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[key], expected[key]) for key in expected)
    assert np.array_equal(np.load(out / "test_scores.npy"), np.load(whole / "test_scores.npy"))
    histories = [[(line.loss, line.val_accuracy) for line in read_checkpoint(it).history] for it in (out, whole)]
    assert histories[0] == histories[1]
    assert not list(tmp_path.glob(".*"))


def test_a_finished_checkpoint_is_left_alone_and_another_is_refused(whole, data, capfd):
    before = (whole / "checkpoint.json").stat().st_mtime_ns
    recipe = Recipe(batch=16, epochs=10)
    assert loop.train(data, "cnn", "pytorch", recipe, whole) == read_checkpoint(whole)
    assert "already finished" in capfd.readouterr().err
    with pytest.raises(BadInput, match="other inputs.*epochs is 10, requested 3.*choose another --out"):
        loop.train(data, "cnn", "pytorch", msgspec.structs.replace(recipe, epochs=3), whole)
    assert (whole / "checkpoint.json").stat().st_mtime_ns == before


def test_a_folder_of_something_else_is_never_replaced(data, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    for out in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
        with pytest.raises(BadInput, match="exists and is not a checkpoint; choose another --out"):
            loop.train(data, "cnn", "pytorch", Recipe(batch=16, epochs=1), out)
    with pytest.raises(BadInput, match="is a file, or below a file"):
        loop.train(data, "cnn", "pytorch", Recipe(batch=16, epochs=1), tmp_path / "mine" / "thesis.txt" / "x")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"


def interrupted(data, recipe, out, monkeypatch):
    """Train, but stop before the checkpoint is written; returns the folder of the last state."""
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(loop, "_write_checkpoint", lambda *_: (_ for _ in ()).throw(InterruptedError))
        loop.train(data, "cnn", "pytorch", recipe, out)
    return max((out.parent / f".{out.name}.resume").iterdir())


def test_the_state_of_other_inputs_is_discarded(data, tmp_path, monkeypatch, capfd):
    out = tmp_path / "it"
    interrupted(data, Recipe(batch=16, epochs=1), out, monkeypatch)
    checkpoint = loop.train(data, "cnn", "pytorch", Recipe(batch=16, epochs=1, seed=1), out)
    assert "has other inputs (seed is 0, requested 1); discarded" in capfd.readouterr().err
    assert checkpoint.recipe.seed == 1


def test_a_damaged_state_is_not_resumed(data, tmp_path, monkeypatch, capfd):
    out, recipe = tmp_path / "it", Recipe(batch=16, epochs=2)
    state = interrupted(data, recipe, out, monkeypatch)
    weights = state / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    checkpoint = loop.train(data, "cnn", "pytorch", recipe, out)
    told = capfd.readouterr().err
    assert "cannot resume" in told
    assert "resuming" not in told
    assert len(checkpoint.history) == 2


def test_a_loss_that_is_not_finite_names_its_step_and_keeps_the_last_state(data, tmp_path):
    recipe = Recipe(batch=16, epochs=5, learning_rate=1e30)
    with pytest.raises(CannotRun, match=r"the loss is nan at step \d+: epoch \d, batch \d.*learning_rate below"):
        loop.train(data, "cnn", "pytorch", recipe, tmp_path / "it")
    assert not (tmp_path / "it").exists()


def test_a_network_with_another_parameter_count_is_refused(data, tmp_path, monkeypatch):
    row = msgspec.structs.replace(ARCHITECTURES["cnn"], backbone_parameters=1000)
    monkeypatch.setitem(ARCHITECTURES, "cnn", row)
    with pytest.raises(CannotRun, match="builds cnn with 288488 parameters; the table says 2032"):
        loop.train(data, "cnn", "pytorch", Recipe(batch=16, epochs=1), tmp_path / "it")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 101}, "batch is 101; expected from 2 to the 100 training images"),
        ({"epochs": 0}, "'epochs' is 0; expected whole number, at least 1"),
        ({"learning_rate": float("nan")}, "'learning_rate' is NaN"),
        ({"shift": 28}, "shift is 28; expected from 0 to 27 pixels"),
        ({"label_smoothing": 1.0}, "'label_smoothing' is 1.0"),
        ({"weight_decay": -1.0}, "'weight_decay' is -1.0"),
        ({"seed": -1}, "'seed' is -1"),
    ],
)
def test_a_recipe_out_of_bounds_is_refused(data, tmp_path, change, message):
    with pytest.raises(BadInput, match=message):
        loop.train(data, "cnn", "pytorch", msgspec.structs.replace(Recipe(batch=16), **change), tmp_path / "it")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--set", "epoch=3"), "--set epoch=3: unknown field 'epoch' (did you mean epochs?); there is: balanced"),
        (("--set", "epochs=few"), "--set epochs=few: epochs: Expected `int`, got `str`"),
        (("--framework", "torch"), "unknown framework 'torch'"),
        (("--architecture", "cnm"), "unknown architecture 'cnm' (did you mean cnn?)"),
    ],
)
def test_bad_words_are_one_line_and_exit_code_2(stage, tiny, tmp_path, words, message):
    done = stage(*WORDS, *words, "--out", str(tmp_path / "it"), MEDMNIST_ROOT=str(tiny))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_untrained_is_at_chance_and_trained_is_not(checkpoint):
    synthetic = open_dataset("synthetic", 28)
    fresh = loop._trainer(ARCHITECTURES["cnn"], "pytorch", Recipe(), RANDOM, 8, 1)
    untrained = loop.predict(fresh, synthetic, "test", 128).argmax(1) == synthetic.labels("test")
    assert untrained.mean() < 0.25
    assert 0.25 < read_checkpoint(checkpoint).test.accuracy < 1
