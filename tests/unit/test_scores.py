import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from medmnist.evaluator import getACC, getAUC
from sklearn.metrics import recall_score

from medserve.errors import BadInput
from medserve.scores import decisions, score, shares_right


@st.composite
def tables(draw):
    """Labels with every class, and scores of which many are tied."""
    classes = draw(st.integers(2, 9))
    labels = draw(arrays.arrays(np.int64, draw(st.integers(1, 60)), elements=st.integers(0, classes - 1)))
    labels = np.concatenate((np.arange(classes), labels))
    levels = draw(st.sampled_from((2, 5, 1000)))
    raw = draw(arrays.arrays(np.int64, (len(labels), classes), elements=st.integers(0, levels)))
    return labels, (raw / levels).astype(np.float32)


@given(tables())
def test_scores_equal_medmnists_evaluator(table):
    labels, probabilities = table
    # Two classes are "multi-class" to MedMNIST as well when there is a score for each.
    found = score(labels, probabilities)
    assert found.auc == pytest.approx(getAUC(labels[:, None], probabilities, "multi-class"), abs=1e-12)
    assert found.accuracy == pytest.approx(getACC(labels[:, None], probabilities, "multi-class"), abs=1e-12)
    assert found.images == len(labels)
    assert found.auc == pytest.approx(getAUC(labels[:, None], probabilities, "ordinal-regression"), abs=1e-12)
    assert found.accuracy == getACC(labels[:, None], probabilities, "ordinal-regression")


@given(st.integers(0, 2**32 - 1), st.integers(2, 60))
def test_scores_of_two_classes_equal_medmnists_binary_task(seed, count):
    """There the score of the second class alone counts, above one half."""
    generator = np.random.default_rng(seed)
    labels = np.append([0, 1], generator.integers(0, 2, count))
    # Multiples of 1/64, so that both scores add up to 1 exactly and some are tied.
    second = (generator.integers(0, 65, len(labels)) / 64).astype(np.float32)
    found = score(labels, np.stack([1 - second, second], 1))
    assert found.auc == pytest.approx(getAUC(labels[:, None], second[:, None], "binary-class"), abs=1e-12)
    assert found.accuracy == getACC(labels[:, None], second[:, None], "binary-class")


@st.composite
def labelled(draw):
    """Several labels per image, each with and without an image, and scores of which many are tied, or at 0.5."""
    count = draw(st.integers(2, 14))
    labels = draw(arrays.arrays(np.int64, (draw(st.integers(1, 40)), count), elements=st.integers(0, 1)))
    labels = np.concatenate((np.zeros((1, count), np.int64), np.ones((1, count), np.int64), labels))
    levels = draw(st.sampled_from((2, 5, 1000)))
    raw = draw(arrays.arrays(np.int64, labels.shape, elements=st.integers(0, levels)))
    return labels, (raw / levels).astype(np.float32)


@given(labelled())
def test_scores_of_several_labels_equal_medmnists_evaluator(table):
    labels, probabilities = table
    found = score(labels, probabilities)
    assert found.auc == pytest.approx(getAUC(labels, probabilities, "multi-label, binary-class"), abs=1e-12)
    assert found.accuracy == pytest.approx(getACC(labels, probabilities, "multi-label, binary-class"), abs=1e-12)
    assert found.images == len(labels)
    recalls = [
        recall_score(labels[:, at], probabilities[:, at] > 0.5, average="macro") for at in range(labels.shape[1])
    ]
    assert found.balanced_accuracy == pytest.approx(np.mean(recalls), abs=1e-12)


def test_several_labels_are_decided_each_by_its_side_of_one_half():
    probabilities = np.array([[0.9, 0.6, 0.5], [0.2, 0.1, 0.50001]], np.float32)
    assert decisions(probabilities, "multi-label").tolist() == [[1, 1, 0], [0, 0, 1]]
    assert decisions(probabilities, "multi-class").tolist() == [0, 2]
    labels = np.array([[1, 1, 1], [0, 0, 1]])
    assert shares_right(labels, probabilities).tolist() == [pytest.approx(2 / 3), 1.0]
    assert shares_right(np.array([1, 2]), probabilities).tolist() == [0.0, 1.0]


def test_labels_that_never_apply_are_mostly_right_and_balanced_at_chance():
    """Of ten images one has each label: nine tenths of the decisions are right, and none is of any use."""
    labels = np.eye(10, 3, dtype=np.int64)
    found = score(labels, np.full((10, 3), 0.1, np.float32))
    assert found.accuracy == pytest.approx(0.9)
    assert (found.balanced_accuracy, found.auc) == (0.5, 0.5)


def test_balanced_accuracy_is_the_mean_recall():
    labels = np.array([0, 0, 0, 0, 1, 1])
    probabilities = np.eye(2, dtype=np.float32)[[0, 0, 0, 1, 1, 0]]
    found = score(labels, probabilities)
    assert found.accuracy == pytest.approx(4 / 6)
    assert found.balanced_accuracy == pytest.approx((3 / 4 + 1 / 2) / 2)


def test_constant_scores_are_chance():
    assert score(np.array([0, 1, 2, 0]), np.full((4, 3), 1 / 3, np.float32)).auc == 0.5


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        (np.array([0, 1, 1]), np.zeros((3, 3), np.float32), "class 2 has 0 of 3 images"),
        (np.array([0, 0]), np.zeros((2, 1), np.float32), "class 0 has 2 of 2 images"),
        (np.array([0, 1]), np.array([[1, 0], [np.nan, 1]], np.float32), "scores of image 1 are not finite"),
        (np.array([0, 1, 0]), np.zeros((2, 2), np.float32), "expected \\(n, classes\\)"),
        (np.array([[0, 1], [1, 1]]), np.zeros((2, 2), np.float32), "class 1 has 2 of 2 images"),
        (np.array([[0, 1], [1, 0]]), np.zeros((2, 3), np.float32), "expected \\(n, classes\\) for \\(n, classes\\)"),
        (np.array([], np.int64), np.zeros((0, 2), np.float32), "expected \\(n, classes\\)"),
    ],
)
def test_what_has_no_score_is_refused(labels, probabilities, message):
    with pytest.raises(BadInput, match=message):
        score(labels, probabilities)
