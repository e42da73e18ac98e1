"""A checkpoint opens in every framework as the function that was trained, and a layer that is another is named."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from conftest import Checkpoints, Stage

from medserve import plugins, store
from medserve.certificate import compare
from train.parity import ParityResult, describe

FRAMEWORKS = plugins.names("train.frameworks")
LABELS = np.arange(40) % 4
SCORES = np.random.default_rng(1).dirichlet(np.ones(4), 40).astype(np.float32)
PROOF = compare(SCORES, SCORES, LABELS, runtime="keras_tf", versions={})
EQUAL = ParityResult(framework="keras_tf", layers=9, divergence=None, logits=0.02, certificate=PROOF)


def test_a_checkpoint_is_one_function_in_every_framework(stage: Stage, checkpoint_of: Checkpoints) -> None:
    framework = "keras_tf"
    folder = checkpoint_of(framework)
    done = stage("train", "parity", str(folder), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # The one that trained it comes first.
    assert found[0]["framework"] == framework
    assert {one["framework"] for one in found} == {
        name for name in FRAMEWORKS if not plugins.missing("train.frameworks", name)
    }
    test = store.read_checkpoint(folder).test
    for one in found:
        assert one["agrees"]
        # cnn: six convolutions, six batch norms, the head.
        assert (one["layers"], one["divergence"]) == (13, None)
        assert one["logits"] <= 1.0
        assert one["certificate"]["accuracy"] == pytest.approx(test.accuracy, abs=1e-3)
        assert one["certificate"]["auc"] == pytest.approx(test.auc, abs=1e-5)


def test_a_line_says_how_nearly_it_is_the_same() -> None:
    assert EQUAL.reason is None
    assert describe(EQUAL).startswith(
        "keras_tf    largest |difference| 0.0e+00 on 40 test images, 0 decisions changed, "
    )
    assert describe(EQUAL).endswith("logits at 0.02 of the limit; 9 layers agree")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"divergence": "conv: 1 at [0, 0], expected 2"}, "first layer to differ: conv: 1 at [0, 0], expected 2"),
        ({"logits": 1.5}, "logits differ by 1.5 times the allowed difference"),
        ({"logits": float("nan")}, "logits differ by nan times the allowed difference"),
        (
            {"certificate": compare(SCORES[::-1], SCORES, LABELS, runtime="keras_tf", versions={})},
            "largest |difference of probabilities| is ",
        ),
    ],
)
def test_what_is_another_function_says_where(change: dict[str, object], reason: str) -> None:
    assert str(msgspec.structs.replace(EQUAL, **change).reason).startswith(reason)


def test_a_folder_that_is_no_checkpoint_is_refused(stage: Stage, tmp_path: Path) -> None:
    done = stage("train", "parity", str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert f"error: {tmp_path}" in done.stderr
