"""The contract of training: every framework that is found computes what PyTorch computes. A new file joins by itself.

Two frameworks never share a process: `framework_job.py` runs once for each, and the tests compare what it wrote.
"""

import numpy as np
import pytest
from job import Jobs, Outcome, Weights

from medserve import plugins
from medserve.tables import ARCHITECTURES

REFERENCE = "pytorch"
STATISTICS = (".running_mean", ".running_var")


@pytest.fixture(scope="session")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    return Jobs("framework_job.py", tmp_path_factory.mktemp("frameworks"))


@pytest.fixture(scope="session", params=plugins.names("train.frameworks"))
def outcome(request: pytest.FixtureRequest, jobs: Jobs) -> Outcome:
    return jobs[request.param]


@pytest.fixture(scope="session")
def reference(jobs: Jobs) -> Outcome:
    return jobs[REFERENCE]


def assert_equal(left: Weights, right: Weights) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert np.array_equal(value, right[name]), name


def assert_near(left: Weights, right: Weights, tolerance: float) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert np.abs(value - right[name]).max() <= tolerance, name


def test_the_parameters_are_those_of_the_table(outcome: Outcome) -> None:
    assert outcome.found["parameters"] == ARCHITECTURES["cnn"].parameters(8) == 288_488


def test_canonical_weights_have_pytorchs_names_shapes_and_type(outcome: Outcome, reference: Outcome) -> None:
    expected = {name: value.shape for name, value in reference.weights("fresh").items()}
    assert {name: value.shape for name, value in outcome.weights("fresh").items()} == expected
    assert {value.dtype for value in outcome.weights("fresh").values()} == {np.dtype(np.float32)}


def test_initial_weights_follow_from_the_seed(outcome: Outcome) -> None:
    assert_equal(outcome.weights("fresh"), outcome.weights("fresh-again"))
    other = outcome.weights("fresh-other")
    kernels = {name: value for name, value in outcome.weights("fresh").items() if value.ndim > 1}
    assert not any(np.array_equal(value, other[name]) for name, value in kernels.items())
    assert len({value.ravel()[:100].tobytes() for value in kernels.values()}) == len(kernels)


def test_initial_weights_follow_the_convention(outcome: Outcome) -> None:
    """He normal by fan out for convolutions, deviation 0.01 for the head; ones and zeros for the rest."""
    for name, value in outcome.weights("fresh").items():
        if value.ndim == 1:
            assert (value == float(name.endswith(("bn.weight", "running_var")))).all(), name
            continue
        expected = np.sqrt(2.0 / (value.shape[0] * 9)) if value.ndim == 4 else 0.01
        assert value.std() == pytest.approx(expected, rel=0.1), name
        assert abs(value.mean()) < 0.1 * expected, name
        # A normal that is not truncated: one value in 370 lies beyond three deviations.
        assert np.abs(value).max() > 2.8 * expected, name


def test_canonical_weights_return_unchanged(outcome: Outcome) -> None:
    assert_equal(outcome.weights("given"), outcome.weights("returned"))


def test_weights_that_do_not_fit_are_refused_by_name(outcome: Outcome) -> None:
    assert outcome.found["refusal"] == (
        "the weights do not fit the network; "
        "fc.bias: network (8,), weights none; fc.weight: network (8, 128), weights (128, 8)"
    )


@pytest.mark.parametrize("name", ["scores", "scores_28", "scores_27", "scores_one"])
def test_equal_weights_predict_equally(outcome: Outcome, reference: Outcome, name: str) -> None:
    """Padding, pooling at odd sizes, normalisation, batch norm's epsilon: any other choice shows here."""
    scores = outcome.found[name]
    assert scores.dtype == np.float32
    assert np.abs(scores.sum(1) - 1.0).max() < 1e-6
    assert np.abs(scores - reference.found[name]).max() <= 1e-5


def test_a_prediction_does_not_depend_on_its_batch(outcome: Outcome) -> None:
    assert np.abs(outcome.found["scores_one"] - outcome.found["scores"][:1]).max() <= 1e-6


def test_five_steps_lose_equally(outcome: Outcome, reference: Outcome) -> None:
    assert np.abs(outcome.found["losses"] - reference.found["losses"]).max() <= 1e-5


def test_five_steps_arrive_at_the_same_network(outcome: Outcome, reference: Outcome) -> None:
    """Weights have moved by up to 7e-3; where a gradient is near zero, rounding decides the direction of its step."""
    assert_near(outcome.weights("stepped"), reference.weights("stepped"), 1e-3)
    for name, value in outcome.weights("stepped").items():
        assert np.abs(value - reference.weights("stepped")[name]).mean() <= 1e-6, name
    assert np.abs(outcome.found["scores_stepped"] - reference.found["scores_stepped"]).max() <= 1e-5


def test_running_statistics_are_pytorchs(outcome: Outcome, reference: Outcome) -> None:
    """A tenth of each batch, and its unbiased variance: in the last stage 16 pixels, so that the biased is 6 % less."""
    given, few = outcome.weights("given-few"), outcome.weights("few")
    for name, value in reference.weights("few").items():
        if name.endswith(STATISTICS):
            assert np.abs(value - given[name]).max() > 1e-3, name
            assert np.abs(value - few[name]).max() <= 1e-6, name


def test_adam_puts_epsilon_outside_and_spares_batch_norm_and_biases_from_decay(
    outcome: Outcome, reference: Outcome
) -> None:
    """Gradients near epsilon, decay 1: weights move by 5e-5, and any misplacement changes that by more than 1e-6."""
    assert outcome.found["losses_gentle"] == pytest.approx(reference.found["losses_gentle"], abs=1e-5)
    assert_near(outcome.weights("gentle"), reference.weights("gentle"), 1e-6)


def test_several_labels_lose_and_learn_equally(outcome: Outcome, reference: Outcome) -> None:
    """Behind so small a head the steps follow the gradients of all labels, as in the test above."""
    assert outcome.found["losses_labelling"] == pytest.approx(reference.found["losses_labelling"], abs=1e-5)
    assert_near(outcome.weights("labelling"), reference.weights("labelling"), 1e-6)
    given, learned = reference.weights("given-labelling"), reference.weights("labelling")
    assert any(np.abs(learned[name] - given[name]).max() > 2e-5 for name in learned), "nothing was learned"


def test_several_labels_have_a_sigmoid_each(outcome: Outcome, reference: Outcome) -> None:
    """The logits are those of the softmax, which determine them up to a constant per image."""
    scores = outcome.found["scores_labelling"].astype(np.float64)
    assert np.abs(scores - reference.found["scores_labelling"]).max() <= 1e-5
    powers = scores / (1 - scores)
    assert powers / powers.sum(1, keepdims=True) == pytest.approx(outcome.found["scores"], abs=1e-5)


def test_a_resumed_training_goes_on_exactly(outcome: Outcome) -> None:
    assert outcome.found["loss_resumed"] == outcome.found["loss_on"]
    assert_equal(outcome.weights("resumed"), outcome.weights("on"))
    assert (outcome.folder / "stepped" / "resume.safetensors").is_file()
