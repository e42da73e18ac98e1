"""The vocabulary: nouns survive JSON, tables hold, plug-ins are found unimported, listing imports nothing heavy."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from medserve import errors, matrix, plugins, study_file
from medserve.models import Recipe
from medserve.spec import Deployment
from medserve.study import Study
from medserve.tables import ARCHITECTURES, DATASETS, FORMATS, PROFILES, pick

HEAVY = {"torch", "tensorflow", "keras", "jax", "flax", "onnx", "onnxruntime", "locust", "gevent", "medmnist", "scipy"}
REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("table", [DATASETS, ARCHITECTURES, FORMATS, PROFILES])
def test_a_row_stands_under_its_own_name_and_survives_json(table: dict[str, msgspec.Struct]) -> None:
    for name, row in table.items():
        assert row.name == name
        assert msgspec.json.decode(msgspec.json.encode(row), type=type(row)) == row


def test_datasets_have_the_published_splits() -> None:
    """Split sizes of Yang et al., MedMNIST v2, Scientific Data 10 (2023)."""
    counts = {name: (row.train, row.val, row.test, row.classes) for name, row in DATASETS.items()}
    assert counts["bloodmnist"] == (11_959, 1_712, 3_421, 8)
    assert counts["dermamnist"] == (7_007, 1_003, 2_005, 7)
    assert counts["pathmnist"] == (89_996, 10_004, 7_180, 9)


def test_rows_agree_with_the_medmnist_package() -> None:
    """Its table is read as text, for importing the package loads torch."""
    spec = importlib.util.find_spec("medmnist")
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / "info.py").read_text())
    info = next(ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "INFO")
    for name, row in DATASETS.items():
        if name != "synthetic":
            assert info[name]["n_samples"] == {"train": row.train, "val": row.val, "test": row.test}
            assert len(info[name]["label"]) == row.classes
            assert row.licence.startswith(info[name]["license"])
            # Its words say further that two classes, and each of several labels, are binary.
            words = info[name]["task"].removesuffix(", binary-class").removesuffix("-class").removesuffix("-regression")
            assert row.task.removesuffix("-class") == words.removesuffix("-class")
            assert row.channels == info[name]["n_channels"]


def test_every_format_has_a_reader_and_a_writer() -> None:
    runtimes = {name: plugins.literals("serve.runtimes", name)["READS"] for name in plugins.names("serve.runtimes")}
    written = {
        form
        for name in plugins.names("export.frameworks")
        for form in plugins.literals("export.frameworks", name)["WRITES"]
    }
    for form in written:
        assert form in FORMATS
        assert form in runtimes[FORMATS[form].runtime]


@pytest.mark.parametrize(
    "package", ["train.frameworks", "export.frameworks", "serve.runtimes", "train.models.canonical"]
)
def test_plugins_say_what_they_need(package: str) -> None:
    found = plugins.names(package)
    assert found
    for name in found:
        assert "REQUIRES" in plugins.literals(package, name)


def test_a_framework_stands_in_every_stage() -> None:
    frameworks = plugins.names("train.frameworks")
    assert frameworks == plugins.names("export.frameworks") == plugins.names("train.models.canonical")
    for family in {row.family for row in ARCHITECTURES.values()}:
        assert frameworks == plugins.names(f"train.models.{family}")


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(errors.BadInput, match=r"unknown dataset 'bloodmnst' \(did you mean bloodmnist\?\).*synthetic"):
        pick(DATASETS, "dataset", "bloodmnst")
    with pytest.raises(errors.BadInput, match="unknown runtime 'mxnet'.*there is: .*onnx_runtime"):
        plugins.load("serve.runtimes", "mxnet")


def test_a_plugin_whose_modules_are_missing_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shelf").mkdir()
    (tmp_path / "shelf" / "__init__.py").write_text("")
    (tmp_path / "shelf" / "odd.py").write_text('REQUIRES = ("no_such_module",)\nimport no_such_module\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(errors.CannotRun, match="odd needs no_such_module, which is not installed"):
        plugins.load("shelf", "odd")


@pytest.mark.parametrize("words", [["list"], ["list", "--json"], ["--help"]])
def test_listing_imports_nothing_heavy(words: list[str]) -> None:
    code = f"import sys; from medserve.cli import app; app({words!r}, standalone_mode=False); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert not HEAVY & imported


def test_the_version_is_said_once() -> None:
    import medserve

    assert f'version = "{medserve.__version__}"' in (REPOSITORY / "pyproject.toml").read_text()


def test_a_deployment_names_all_that_varies() -> None:
    one = Deployment(artifact="a.onnx", runtime="onnx_runtime")
    others = [
        msgspec.structs.replace(one, runtime="null"),
        msgspec.structs.replace(one, device="cuda"),
        msgspec.structs.replace(one, threads=2),
        msgspec.structs.replace(one, dispatch="thread"),
    ]
    assert len({one.name, *(other.name for other in others)}) == 5


def test_a_manifest_with_an_unknown_field_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field `epoch`"):
        msgspec.json.decode(b'{"epoch": 3}', type=Recipe)


@pytest.mark.parametrize("name", study_file.names())
def test_studies_are_valid_and_named_as_their_file(name: str) -> None:
    found = study_file.read(name)
    assert isinstance(found, Study)
    assert found.name == name
    assert matrix.plan(found).deployed
