import numpy as np
import pytest

from medserve.tables import DATASETS
from train import synthetic


@pytest.fixture(scope="module")
def few():
    return synthetic.cells("test", 64)


def drawn(cells, size):
    return np.concatenate(list(synthetic.draw(cells, size)))


def test_the_classes_are_those_of_the_table():
    assert len(synthetic.CLASSES) == DATASETS["synthetic"].classes
    assert all(len(row) == len(synthetic.COLUMNS) for row in (*synthetic.CLASSES.values(), synthetic.SPREAD))


def test_labels_are_pinned_and_balanced(few):
    assert few.labels[:16].tolist() == [2, 0, 3, 1, 3, 5, 6, 0, 6, 2, 5, 5, 3, 2, 3, 4]
    assert np.bincount(few.labels).tolist() == [8] * 8


def test_numbers_of_a_cell_are_pinned(few):
    assert few.values["radius"][:3] == pytest.approx([0.2880380, 0.2905720, 0.2527004], abs=1e-6)
    assert few.values["stain"][:3, 2] == pytest.approx([1.0784812, 0.9789873, 0.9659772], abs=1e-6)


def test_two_calls_draw_the_same_pixels_and_splits_differ(few):
    again = synthetic.cells("test", 64)
    assert np.array_equal(drawn(few, 28), drawn(again, 28))
    assert not np.array_equal(few.values["radius"], synthetic.cells("val", 64).values["radius"])


@pytest.mark.parametrize("size", [8, 28, 64, 100])
def test_images_have_the_asked_size_and_use_the_range(few, size):
    images = drawn(few, size)
    assert images.shape == (64, size, size, 3)
    assert images.dtype == np.uint8
    assert images.min() < 60
    assert images.max() > 230
    # Each has a bright background and something stained on it, and no two are alike.
    assert (images.reshape(64, -1).std(1) > 10).all()
    assert len(np.unique(images.reshape(64, -1), axis=0)) == 64


def test_more_pixels_show_the_same_cell(few):
    large = drawn(few, 112).astype(np.float32)
    small = drawn(few, 28).astype(np.float32)
    reduced = large.reshape(64, 28, 4, 28, 4, 3).mean((2, 4))
    # Apart from the noise, which is drawn for each size, a small image is a reduced large one.
    assert np.abs(reduced - small).mean() < 8
    assert np.abs(reduced - small[::-1]).mean() > 20


def test_detail_grows_with_the_size(few):
    def detail(images):
        grey = images.astype(np.float32).mean(3)
        return np.abs(np.diff(grey, axis=2)).sum(2).mean()

    quiet = synthetic.Cells(
        labels=few.labels, values=few.values | {"noise": np.zeros(64, np.float32)}, stream=few.stream
    )
    assert detail(drawn(quiet, 112)) > 1.5 * detail(drawn(quiet, 28))


def test_no_single_number_tells_the_class():
    cells = synthetic.cells("train", 800)
    # The nearest class mean in mean colour alone is far from right, and better than chance: classes overlap.
    colour = drawn(cells, 16).reshape(800, -1, 3).mean(1)
    means = np.stack([colour[cells.labels == label].mean(0) for label in range(8)])
    guesses = np.linalg.norm(colour[:, None] - means, axis=2).argmin(1)
    assert 0.15 < (guesses == cells.labels).mean() < 0.6
