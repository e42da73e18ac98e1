"""Every family of networks is one function in all frameworks, with torchvision's names, and trains alike.

Two frameworks never share a process: `network_job.py` runs once for each, and the tests compare what it wrote.
"""

import json
from pathlib import Path

import job
import msgspec
import numpy as np
import pytest
from framework_job import drawn
from job import Jobs, Outcome
from network_job import ALTERED, BRIEF, SIZES, forms
from small_networks import SMALL

from medserve import plugins
from medserve.models import Certificate
from medserve.tables import ARCHITECTURES
from train.parity import LIMIT, divergence

HERE = Path(__file__).parents[1] / "support"
# Both processes of a parallel run would do the jobs again.
pytestmark = pytest.mark.xdist_group("networks")
REFERENCE = "pytorch"
FRAMEWORKS = plugins.names("train.frameworks")
SLOW = "flax_nnx"
"""Its jobs take longer than those of the two others together: they are of `make test-full`."""
EXPORTS = {
    extent: [
        (framework, form, name, size)
        for framework in plugins.names("export.frameworks")
        if extent == "whole" or framework != SLOW
        for name in (SMALL if extent == "whole" else BRIEF)
        for size in SIZES
        for form in forms(plugins.literals("export.frameworks", framework)["WRITES"], size, extent)
    ]
    for extent in ("brief", "whole")
}
# Tracing the deepest ones takes half a minute in each framework.
QUICKLY_COUNTED = ("cnn", "resnet18", "resnet50_v1", "efficientnet_v2_s")
# With 1000 classes, as torchvision counts them.
PUBLISHED = {
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "resnet50_v1": 25_557_032,
    "efficientnet_v2_s": 21_458_488,
    "efficientnet_v2_l": 118_515_272,
}


def marked(value: object, brief: bool) -> object:
    """A parameter, of `make test-full` unless it is among the brief ones."""
    return value if brief else pytest.param(value, marks=pytest.mark.full)


@pytest.fixture(scope="module")
def jobs(extent: str, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    # XLA compiles without optimisation in a third of the time; `test_frameworks.py` compares what it optimises.
    flags = "--xla_backend_optimization_level=0"
    return Jobs("network_job.py", tmp_path_factory.mktemp("networks"), extent, XLA_FLAGS=flags)


@pytest.fixture(scope="module", params=[marked(name, name != SLOW) for name in FRAMEWORKS])
def outcome(request: pytest.FixtureRequest, jobs: Jobs) -> Outcome:
    return jobs[request.param]


@pytest.fixture(scope="module")
def reference(jobs: Jobs) -> Outcome:
    return jobs[REFERENCE]


every_network = pytest.mark.parametrize("name", [marked(name, name in BRIEF) for name in SMALL])


def test_the_table_has_the_published_parameters() -> None:
    assert {name: ARCHITECTURES[name].parameters(1000) for name in PUBLISHED} == PUBLISHED


@pytest.mark.parametrize("framework", [marked(name, name == REFERENCE) for name in FRAMEWORKS])
@pytest.mark.parametrize(
    "names", [QUICKLY_COUNTED, pytest.param(tuple(ARCHITECTURES), marks=pytest.mark.full)], ids=["quick", "all"]
)
def test_parameters_and_multiply_adds_are_those_of_the_table(framework: str, names: tuple[str, ...]) -> None:
    if absent := plugins.missing("train.frameworks", framework):
        pytest.skip(f"{framework} needs {', '.join(absent)}, which is not installed")
    counts = json.loads(job.run("count_job.py", framework, *names))
    rows = [ARCHITECTURES[name] for name in names]
    assert counts == {row.name: [row.parameters(1000), row.multiply_adds + row.features * 1000] for row in rows}


@every_network
def test_canonical_weights_have_pytorchs_names_and_shapes(outcome: Outcome, reference: Outcome, name: str) -> None:
    expected = {key: value.shape for key, value in reference.weights(f"{name}-fresh").items()}
    assert {key: value.shape for key, value in outcome.weights(f"{name}-fresh").items()} == expected


def test_names_are_torchvisions(reference: Outcome) -> None:
    resnet, efficientnet = (reference.weights(f"{name}-fresh") for name in ("bottleneck", "efficientnet"))
    assert {"conv1.weight", "bn1.running_var", "layer1.0.downsample.0.weight", "layer4.0.bn3.bias", "fc.bias"} < set(
        resnet
    )
    assert {"features.0.0.weight", "features.1.0.block.0.1.bias", "classifier.1.weight"} < set(efficientnet)
    # Depthwise; and a quarter of the block's 12 input channels, of the 48 within.
    assert efficientnet["features.3.0.block.1.0.weight"].shape == (48, 1, 3, 3)
    assert efficientnet["features.3.0.block.2.fc1.weight"].shape == (3, 48, 1, 1)


def test_common_initial_weights_are_the_same_in_every_framework(outcome: Outcome, reference: Outcome) -> None:
    found, expected = outcome.weights("common"), reference.weights("common")
    assert found.keys() == expected.keys()
    assert [name for name in found if not np.array_equal(found[name], expected[name])] == []


@pytest.mark.parametrize("name", [*(marked(f"{name}-fresh", name in BRIEF) for name in SMALL), "common"])
def test_initial_weights_follow_the_convention(outcome: Outcome, name: str) -> None:
    """He normal by fan out for convolutions, deviation 0.01 for the head; ones and zeros for the rest."""
    shares = []
    for key, value in outcome.weights(name).items():
        if value.ndim == 1:
            assert (value == 0.0).all() or ((value == 1.0).all() and key.endswith(("weight", "running_var"))), key
            continue
        expected = np.sqrt(2.0 / (value.shape[0] * value[0, 0].size)) if value.ndim == 4 else 0.01
        shares.append(value.ravel() / expected)
        # Of n values the deviation is known to a share of 1 / sqrt(2 n).
        assert value.std() == pytest.approx(expected, rel=4.5 / np.sqrt(2 * value.size)), key
    every = np.concatenate(shares)
    assert np.abs(every).max() > 3.2  # not truncated
    assert len(np.unique(every)) > 0.99 * every.size  # no tensor twice


@every_network
def test_canonical_weights_return_unchanged(outcome: Outcome, name: str) -> None:
    given, returned = drawn(outcome.weights(f"{name}-fresh")), outcome.weights(f"{name}-returned")
    assert given.keys() == returned.keys()
    assert all(np.array_equal(value, returned[key]) for key, value in given.items())


@every_network
@pytest.mark.parametrize("size", SIZES)
def test_equal_weights_give_equal_logits(outcome: Outcome, reference: Outcome, name: str, size: int) -> None:
    """At 28 px strides meet odd sizes. A failure names the first layer that differs."""
    expected, found = (which.arrays(f"{name}-{size}-outputs") for which in (reference, outcome))
    assert found.keys() == expected.keys()
    assert divergence(expected, found) is None
    logits, correct = (values[list(expected)[-1]] for values in (found, expected))
    assert logits.shape == (4, 8)
    assert (np.abs(logits - correct) <= LIMIT + LIMIT * np.abs(correct)).all()


@pytest.mark.parametrize("name", [marked(name, name in BRIEF) for name, row in SMALL.items() if row.family == "resnet"])
def test_the_first_layer_that_differs_is_named(outcome: Outcome, reference: Outcome, name: str) -> None:
    for trained in (reference, outcome):
        report = divergence(trained.arrays(f"{name}-28-outputs"), outcome.arrays(f"{name}-altered"))
        assert str(report).startswith(ALTERED.removesuffix("weight").removesuffix(".") + ": ")


@every_network
def test_layer_outputs_are_in_the_order_of_computation(outcome: Outcome, name: str) -> None:
    """The comparison of frameworks names the first layer that differs, and takes the last one as the logits."""
    names = list(outcome.arrays(f"{name}-28-outputs"))
    assert (names[0], names[-1]) in {("conv1", "fc"), ("features.0.0", "classifier.1")}


def test_the_outputs_of_a_dense_head_are_equal(outcome: Outcome, reference: Outcome) -> None:
    expected, found = (which.arrays("dense-outputs") for which in (reference, outcome))
    assert list(found)[-2:] == list(expected)[-2:] == ["fc.0", "fc.1"]
    assert divergence(expected, found) is None


@every_network
def test_five_steps_of_sgd_arrive_at_the_same_weights(outcome: Outcome, reference: Outcome, name: str) -> None:
    given = drawn(outcome.weights(f"{name}-fresh"))
    found, expected = (which.weights(f"{name}-stepped") for which in (outcome, reference))
    assert found.keys() == expected.keys()
    for key, value in found.items():
        moved = np.abs(expected[key] - given[key]).max()
        assert moved > 1e-5 or value.ndim == 1, key
        assert np.abs(value - expected[key]).max() <= 1e-6 + 1e-3 * moved, key


@every_network
def test_five_steps_of_adamw_lose_equally(outcome: Outcome, reference: Outcome, name: str) -> None:
    """Adam steps by signs: where a gradient is near zero, rounding decides the direction of its step."""
    losses = outcome.found[f"{name}-losses"]
    assert losses == pytest.approx(reference.found[f"{name}-losses"], abs=1e-4)
    assert np.ptp(losses) > 1e-2


def test_drop_out_is_off_in_evaluation(outcome: Outcome) -> None:
    assert np.array_equal(outcome.found["dropping-scores"], outcome.found["efficientnet-scores"])


def test_drop_out_acts_in_training_and_follows_the_state(outcome: Outcome) -> None:
    """A resumed training draws what the uninterrupted one draws; one that starts anew from its weights does not."""
    found = outcome.found
    assert not np.isclose(found["dropping-losses"][0], found["efficientnet-losses"][0], atol=1e-3)
    assert np.isfinite(found["dropping-scores-stepped"]).all()
    assert found["dropping-resumed"] == found["dropping-on"]
    assert found["dropping-elsewhere"] != found["dropping-on"]


def test_stochastic_depth_leaves_out_images_and_keeps_the_mean(outcome: Outcome) -> None:
    dropped = outcome.found["dropped"]
    assert (dropped == dropped[:, :1, :1, :1]).all()
    left = dropped[:, 0, 0, 0]
    assert np.unique(left) == pytest.approx([0.0, 1 / 0.75])
    # 4000 images: five deviations of the mean.
    assert left.mean() == pytest.approx(1.0, abs=5 * np.sqrt(0.25 / 0.75 / 4000))


@pytest.fixture(scope="module")
def certificates(jobs: Jobs, extent: str) -> dict[str, Certificate]:
    """Certificates of every network, size, framework and format; each format's runtime reads all of its models."""
    found: dict[str, Certificate] = {}
    for form in sorted({form for _, form, _, _ in EXPORTS[extent]}):
        folders = [
            jobs[framework].folder / f"{name}-{size}-{form}"
            for framework, written, name, size in EXPORTS[extent]
            if written == form and not plugins.missing("train.frameworks", framework)
        ]
        lines = job.run("certify_job.py", form, *map(str, folders)).splitlines()
        for folder, line in zip(folders, lines, strict=True):
            found[f"{folder.parent.name}/{folder.name}"] = msgspec.json.decode(line, type=Certificate)
    return found


@pytest.mark.parametrize(
    ("framework", "form", "name", "size"),
    [pytest.param(*row, marks=[] if row in EXPORTS["brief"] else [pytest.mark.full]) for row in EXPORTS["whole"]],
)
def test_exports_hold_their_certificates(
    framework: str, form: str, name: str, size: int, jobs: Jobs, certificates: dict[str, Certificate]
) -> None:
    assert jobs[framework]
    proof = certificates[f"{framework}/{name}-{size}-{form}"]
    assert proof.valid, proof.reason
    assert proof.images == 40


def test_layers_that_are_written_otherwise_for_a_processor_are_the_same_function() -> None:
    if absent := plugins.missing("train.frameworks", "flax_nnx"):
        pytest.skip(f"flax_nnx needs {', '.join(absent)}, which is not installed")
    found = [json.loads(line) for line in job.run("rewritten_job.py").splitlines()]
    assert len(found) == 24
    assert [one for one in found if not (one["same"] and one["as_wanted"])] == []


OUTPUTS = {"conv": np.array([[1.0, 1000.0]], np.float32), "fc": np.array([[3.0]], np.float32)}


def test_equal_outputs_do_not_diverge() -> None:
    assert divergence(OUTPUTS, dict(OUTPUTS)) is None
    # Within a share of the layer's largest.
    assert divergence(OUTPUTS, OUTPUTS | {"conv": np.array([[1.05, 1000.0]], np.float32)}) is None


@pytest.mark.parametrize(
    ("other", "report"),
    [
        ({"conv": [[1.2, 1000.0]], "fc": [[4.0]]}, "conv: 1.2 at [0, 0], expected 1"),
        ({"conv": [[1.0, 1000.0]], "fc": [[3.001]]}, "fc: 3.001 at [0, 0], expected 3"),
        ({"conv": [[1.0, np.nan]], "fc": [[3.0]]}, "conv: nan at [0, 1], expected 1000"),
        ({"conv": [[1.0], [1000.0]], "fc": [[3.0]]}, "conv: shape (2, 1), expected (1, 2)"),
        ({"fc": [[3.0]]}, "conv: missing"),
    ],
)
def test_the_report_says_where_and_what(other: dict[str, list[list[float]]], report: str) -> None:
    assert divergence(OUTPUTS, {name: np.array(value, np.float32) for name, value in other.items()}) == report
