"""The whole way on real blood cells, where their archive lies beside the checkout."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Stage, check_stage

from medserve import store
from medserve.models import Checkpoint

ARCHIVE = Path(__file__).parents[3] / "shared" / "data" / "make_npz.py"
WORDS = ("--dataset", "bloodmnist", "--size", "28", "--architecture", "cnn", "--framework", "pytorch")

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not ARCHIVE.is_file(), reason=f"no real images: there is no {ARCHIVE}"),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A root folder with BloodMNIST at 28 px, rebuilt from its source."""
    folder = tmp_path_factory.mktemp("real")
    subprocess.run([sys.executable, str(ARCHIVE), "blood", str(folder), "28"], check=True, capture_output=True)
    return str(folder)


@pytest.fixture(scope="module")
def trained(images: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "blood"
    check_stage("train", "run", *WORDS, "--set", "epochs=2", "--unofficial", "--out", str(out), MEDMNIST_ROOT=images)
    return out


def test_two_epochs_are_clearly_above_chance_and_not_perfect(trained: Path) -> None:
    """Of the test split 19 % are of the largest class; thirty epochs reach 98.9 %."""
    checkpoint: Checkpoint = store.read_checkpoint(trained)
    assert 0.80 < checkpoint.test.accuracy < 0.995
    assert checkpoint.test.images == 3421
    assert checkpoint.unofficial


def test_the_exported_network_is_the_trained_one_on_every_real_image(
    trained: Path, images: str, tmp_path: Path
) -> None:
    check_stage("export", str(trained), "--format", "onnx", "--out", str(tmp_path / "a"), MEDMNIST_ROOT=images)
    certificate = store.read_artifact(tmp_path / "a").certificate
    assert certificate.valid
    assert certificate.images == 3421


def test_rebuilt_images_are_refused_unless_they_are_called_unofficial(
    stage: Stage, images: str, tmp_path: Path
) -> None:
    done = stage("train", "run", *WORDS, "--out", str(tmp_path / "c"), MEDMNIST_ROOT=images)
    assert done.returncode == 2
    assert "unofficial" in done.stderr
    assert done.stderr.count("\n") == 1
