"""Training in part: what does not learn stays as it is in every framework, and what learns does so alike.

Two frameworks never share a process: `transfer_job.py` runs once for each, and the tests compare what it wrote.
"""

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from conftest import Stage
from job import Jobs
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from test_train import TINY, WORDS, tiny  # noqa: F401 (a fixture)
from transfer_job import BRIEF, CASES, CLASS_WEIGHTS, CLASSES, LABEL_WEIGHTS, NETWORKS, WHOLE

from medserve import plugins
from medserve.errors import BadInput, CannotRun
from medserve.models import Recipe
from medserve.store import read_checkpoint, sha256
from medserve.tables import ARCHITECTURES
from train import loop, pretrained
from train.data import open_dataset
from train.frameworks import Trainer, is_trained

# Both processes of a parallel run would do the jobs again.
pytestmark = pytest.mark.xdist_group("transfer")
REFERENCE = "pytorch"
FRAMEWORKS = plugins.names("train.frameworks")
SLOW = "flax_nnx"
"""Its job takes longer than those of the two others together: it is of `make test-full`."""
EVERY = [
    pytest.param(framework, *case, marks=[] if case in BRIEF and framework != SLOW else [pytest.mark.full])
    for framework in FRAMEWORKS
    for case in WHOLE
]


@pytest.fixture(scope="module")
def jobs(extent: str, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    flags = "--xla_backend_optimization_level=0"
    return Jobs("transfer_job.py", tmp_path_factory.mktemp("transfer"), extent, XLA_FLAGS=flags)


@pytest.fixture
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """An address under which the files of a folder are served, and that folder."""
    folder = tmp_path_factory.mktemp("shelf")
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,)).start()
        yield f"http://127.0.0.1:{running.server_port}/", folder
        running.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(("framework", "name", "case"), EVERY)
def test_only_what_learns_changes(jobs: Jobs, framework: str, name: str, case: str) -> None:
    outcome, architecture, recipe = jobs[framework], NETWORKS[name], CASES[case]
    before, after = (outcome.weights(f"{name}-{case}-{when}") for when in ("before", "after"))
    changed = {key for key in before if not np.array_equal(before[key], after[key])}
    assert changed == {key for key in before if is_trained(architecture, recipe, key)}
    assert changed
    assert changed != before.keys()


@pytest.mark.parametrize(("framework", "name", "case"), EVERY)
def test_it_learns_what_pytorch_learns(jobs: Jobs, framework: str, name: str, case: str) -> None:
    if (name, case) == ("efficientnet", "last-stage"):
        pytest.skip("its last stage has stochastic depth, of which each framework draws its own")
    outcome, reference = jobs[framework], jobs[REFERENCE]
    key = f"{name}-{case}"
    assert outcome.found[f"{key}-scores"] == pytest.approx(reference.found[f"{key}-scores"], abs=1e-5)
    assert outcome.found[f"{key}-losses"] == pytest.approx(reference.found[f"{key}-losses"], rel=1e-4)


@pytest.mark.parametrize(("framework", "name", "case"), EVERY)
def test_the_loss_is_the_mean_of_the_weighed_cross_entropies(jobs: Jobs, framework: str, name: str, case: str) -> None:
    """In what learns only its head, training and evaluation see the same features: the scores tell the first loss."""
    if case == "last-stage":
        pytest.skip("its batch norm learns")
    found = jobs[framework].found
    scores, smoothing = found[f"{name}-{case}-scores"].astype(np.float64), CASES[case].label_smoothing
    if case == "labels":
        labels = found["several"][0]
        targets = labels * (1 - smoothing) + smoothing / 2
        losses = -(targets * np.log(scores) + (1 - targets) * np.log(1 - scores))
        expected = (losses * np.where(labels == 1, LABEL_WEIGHTS[1], LABEL_WEIGHTS[0])).mean()
        assert found[f"{name}-{case}-losses"][0] == pytest.approx(expected, rel=1e-4)
        return
    logs, labels = np.log(scores), found["labels"][0]
    targets = np.eye(CLASSES)[labels] * (1 - smoothing) + smoothing / CLASSES
    weights = CLASS_WEIGHTS[labels] if case == "balanced" else np.ones(len(labels))
    expected = (-(targets * logs).sum(1) * weights).mean()
    assert found[f"{name}-{case}-losses"][0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "framework", [pytest.param(name, marks=[] if name != SLOW else [pytest.mark.full]) for name in FRAMEWORKS]
)
def test_a_dense_head_has_its_parameters_and_names(jobs: Jobs, framework: str) -> None:
    outcome, architecture = jobs[framework], NETWORKS["resnet"]
    linear, dense = (int(outcome.found[f"resnet-{case}-parameters"]) for case in ("head", "dense"))
    backbone = linear - architecture.parameters(CLASSES)
    assert dense - backbone == architecture.parameters(CLASSES, hidden=6)
    weights = outcome.weights("resnet-dense-before")
    assert weights["fc.0.weight"].shape == (6, architecture.features)
    assert weights["fc.1.weight"].shape == (CLASSES, 6)


def test_a_recipe_that_begins_with_the_head_has_two_phases() -> None:
    recipe = Recipe(epochs=10, head_epochs=3, head_rate=0.1, trains="last stage")
    assert [(one.trains, one.epochs, one.learning_rate) for one in loop.phases(recipe)] == [
        ("head", 3, 0.1),
        ("last stage", 7, recipe.learning_rate),
    ]
    assert loop.phases(Recipe()) == [Recipe()]


def test_two_phases_end_alike_whether_they_are_interrupted_or_not(
    tiny: Path,  # noqa: F811 (the fixture)
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """After each epoch but the last; `test_train.py` kills the process."""
    monkeypatch.setenv("MEDMNIST_ROOT", str(tiny))
    data = open_dataset("bloodmnist", 28, unofficial=True)
    recipe = Recipe(batch=16, epochs=4, head_epochs=2, balanced=True)
    whole, out = tmp_path / "whole", tmp_path / "cut"
    loop.train(data, "cnn", "pytorch", recipe, whole)
    save = loop._save_state
    for stop in (1, 2, 3):

        def interrupt(trainer: Trainer, states: Path, state: loop.State, stop: int = stop) -> Path:
            folder = save(trainer, states, state)
            if len(state.history) == stop:
                raise InterruptedError
            return folder

        with monkeypatch.context() as patch, pytest.raises(InterruptedError):
            patch.setattr(loop, "_save_state", interrupt)
            loop.train(data, "cnn", "pytorch", recipe, out)
    loop.train(data, "cnn", "pytorch", recipe, out)
    one, other = (load_file(folder / "weights.safetensors") for folder in (whole, out))
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_of_several_labels_each_weighs_as_much_as_its_absence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDMNIST_ROOT", str(tmp_path))
    given = {}
    for split in ("train", "val", "test"):
        labels = (np.arange(40)[:, None] % np.arange(2, 16) == 0).astype(np.uint8)
        given |= {f"{split}_images": np.zeros((40, 28, 28), np.uint8), f"{split}_labels": labels}
    np.savez(tmp_path / "chestmnist.npz", **given)
    data = open_dataset("chestmnist", 28, unofficial=True)
    labels, weights = data.labels("train"), loop._class_weights(Recipe(balanced=True), data)
    assert weights is not None
    assert weights.shape == (2, 14)
    applied = np.where(labels == 1, weights[1], weights[0])
    assert (applied * labels).sum(0) == pytest.approx((applied * (1 - labels)).sum(0), rel=1e-6)
    assert applied.mean(0) == pytest.approx(np.ones(14), rel=1e-6)
    assert loop._class_weights(Recipe(), data) is None


def test_a_checkpoint_says_what_it_began_with(
    tiny: Path,  # noqa: F811 (the fixture)
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("MEDMNIST_ROOT", str(tiny))
    source, out = tmp_path / "given.safetensors", tmp_path / "tuned"
    data = open_dataset("bloodmnist", 28, unofficial=True)
    loop.train(data, "cnn", "pytorch", Recipe(batch=16, epochs=1), tmp_path / "first")
    given = load_file(tmp_path / "first" / "weights.safetensors")
    save_file({name: value.astype(np.float16) for name, value in given.items()}, source)
    words = (*WORDS, *TINY[:2], "--set", "epochs=1", "--set", "trains=head", "--set", f"initial={source}")
    done = stage(*words, "--out", str(out), MEDMNIST_ROOT=str(tiny))
    assert done.returncode == 0, done.stderr
    assert read_checkpoint(out).initial_digest == sha256(source)
    weights = load_file(out / "weights.safetensors")
    kept = {name for name in weights if not name.startswith("fc.")}
    assert all(np.array_equal(weights[name], given[name].astype(np.float16).astype(np.float32)) for name in kept)


def test_weights_that_are_not_there_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDMNIST_ROOT", str(tmp_path))
    with pytest.raises(BadInput, match=r"weights/resnet50\.safetensors: no such file.*medserve data weights resnet50"):
        pretrained.initial("imagenet", ARCHITECTURES["resnet50"])
    with pytest.raises(BadInput, match=r"cnn\.safetensors: no such file.*put"):
        pretrained.initial("imagenet", ARCHITECTURES["cnn"])
    (tmp_path / "odd.safetensors").write_bytes(b"no weights")
    with pytest.raises(BadInput, match="no safetensors file"):
        pretrained.initial(str(tmp_path / "odd.safetensors"), ARCHITECTURES["cnn"])
    with pytest.raises(BadInput, match="unknown architecture with ImageNet weights 'cnn'"):
        pretrained.fetch("cnn")


@pytest.mark.parametrize(
    "framework",
    [pytest.param(name, marks=[] if name == REFERENCE else [pytest.mark.full]) for name in FRAMEWORKS],
)
def test_weights_of_another_network_are_refused_with_the_first_mismatches(
    framework: str,
    tiny: Path,  # noqa: F811 (the fixture)
    stage: Stage,
    tmp_path: Path,
) -> None:
    """Weights that are missing are not drawn in silence either."""
    if absent := plugins.missing("train.frameworks", framework):
        pytest.skip(f"{framework} needs {', '.join(absent)}, which is not installed")
    weights = {"stages.0.0.weight": np.zeros((32, 3, 5, 5), np.float32), "odd.weight": np.zeros(3, np.float32)}
    save_file(weights, tmp_path / "odd.safetensors")
    words = (*WORDS, *TINY[:2], "--framework", framework, "--set", f"initial={tmp_path}/odd.safetensors")
    done = stage(*words, "--out", str(tmp_path / "x"), MEDMNIST_ROOT=str(tiny))
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert line.startswith(f"error: {tmp_path}/odd.safetensors: the weights do not fit the network; ")
    assert "odd.weight: network none, weights (3,)" in line
    assert "weights none" in line
    assert not (tmp_path / "x").exists()


def test_fetched_weights_are_checked_converted_and_stored_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shelf: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")
    url, folder = shelf
    monkeypatch.setenv("MEDMNIST_ROOT", str(tmp_path))
    state = {"conv1.weight": torch.ones(2, 3, 1, 1), "bn1.num_batches_tracked": torch.tensor(7)}
    torch.save(state, folder / "made.pth")
    downloaded = sha256(folder / "made.pth")
    name = f"resnet18-{downloaded[:8]}.pth"
    (folder / "made.pth").rename(folder / name)
    monkeypatch.setitem(pretrained.FILES, "resnet18", name)
    path = pretrained.fetch("resnet18", url)
    (folder / name).unlink()
    assert pretrained.fetch("resnet18", url) == path
    assert load_file(path).keys() == {"conv1.weight"}
    assert [one.name for one in path.parent.iterdir() if one.suffix == ".pth"] == []
    digest, weights = pretrained.initial("imagenet", ARCHITECTURES["resnet18"])
    assert digest == sha256(path)
    # The whole digest of what was downloaded is kept, and told where it could not be checked.
    with safe_open(path, "numpy") as stored:
        said = stored.metadata()
    assert said == {"source": f"{url}{name}", "sha256": downloaded}
    assert (
        f"{name}: its SHA-256 is {downloaded}, of which only the first 8 characters are checked"
        in capsys.readouterr().err
    )
    assert weights["conv1.weight"].dtype == np.float32


def test_weights_are_held_to_the_whole_digest_where_it_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shelf: tuple[str, Path]
) -> None:
    """Another file with the same first 32 bits can be made in minutes."""
    for name, digest in pretrained.DIGESTS.items():
        assert name in pretrained.FILES.values()
        assert len(digest) == 64
        assert digest.startswith(name.rpartition("-")[2].removesuffix(".pth"))
    url, folder = shelf
    monkeypatch.setenv("MEDMNIST_ROOT", str(tmp_path))
    (folder / "made.pth").write_bytes(b"made to have the same first characters")
    found = sha256(folder / "made.pth")
    name = f"resnet18-{found[:8]}.pth"
    (folder / "made.pth").rename(folder / name)
    expected = found[:8] + "0" * 56
    monkeypatch.setitem(pretrained.FILES, "resnet18", name)
    monkeypatch.setitem(pretrained.DIGESTS, name, expected)
    with pytest.raises(CannotRun, match=f"the download has {found}, expected SHA-256 {expected}; removed"):
        pretrained.fetch("resnet18", url)
    assert [path.name for path in (tmp_path / "weights").iterdir()] == [f".{name}.lock"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_epochs": 31}, "head_epochs is 31; expected from 0 to the 30 epochs"),
        ({"hidden": -1}, "'hidden' is -1; expected whole number, at least 0"),
        ({"drop_out": 1.0}, "'drop_out' is 1.0; expected number, at least 0, below 1"),
        ({"trains": "head"}, "trains is head; expected all, because the rest would stay random"),
        ({"trains": "head", "initial": "common"}, "trains is head; expected all, because the rest would stay random"),
    ],
)
def test_what_cannot_be_is_refused(
    change: dict[str, object],
    message: str,
    tiny: Path,  # noqa: F811 (the fixture)
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MEDMNIST_ROOT", str(tiny))
    recipe = msgspec.structs.replace(Recipe(batch=16), **change)
    with pytest.raises(BadInput, match=message):
        loop.train(open_dataset("bloodmnist", 28, unofficial=True), "cnn", "pytorch", recipe, tmp_path / "x")
