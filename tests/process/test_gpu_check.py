"""`make gpu-check`: the whole way with what a machine has, tried on the processor."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import Stage
from mini_study import MINI

from medserve import environments, gpu_check, plugins, store
from medserve.result import Result
from medserve.spec import Environment
from medserve.study_file import read

SCRIPT = Path(gpu_check.__file__)
WITHOUT = """
import sys
from importlib.machinery import PathFinder


class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        absent = ("tensorflow", "keras", "jax", "flax", "altair")
        return None if name.partition(".")[0] in absent else super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""


def test_what_is_missing_is_one_line_with_the_command_that_brings_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-S", str(SCRIPT), "run", str(tmp_path / "out"), str(tmp_path)],
        capture_output=True, text=True, check=False, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "has no numpy, scipy, pyarrow, msgspec, locust" in line
    assert line.endswith(f"make gpu-wheels FOR={sys.version_info.major}.{sys.version_info.minor} MORE=numpy")


def test_a_wheel_packed_smaller_is_still_installed_by_pip(tmp_path: Path) -> None:
    wheel, site = tmp_path / "some_package-1.0-py3-none-any.whl", tmp_path / "site"
    described = {"METADATA": "Metadata-Version: 2.1\nName: some-package\nVersion: 1.0\n"}
    described |= {"WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n", "RECORD": ""}
    files = {f"some_package-1.0.dist-info/{name}": text for name, text in described.items()}
    files |= {
        "some_package/__init__.py": "x = 1\n" * 500,
        "some_package/tests/test_it.py": "",
        "some_package/it.pyx": "",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    before = wheel.stat().st_size
    gpu_check._pack(wheel)
    assert wheel.stat().st_size < before
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--target", str(site), str(wheel)], check=True
    )
    assert [path.name for path in (site / "some_package").iterdir() if path.is_file()] == ["__init__.py"]


def test_wheels_of_another_python_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "absent_package-1.0-cp27-cp27m-win32.whl").write_bytes(b"")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "run", str(tmp_path / "out"), str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "are not for this Python: make gpu-wheels FOR=3." in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out" / "site").exists()


def test_a_package_that_is_not_pinned_is_one_line_and_nothing_is_removed(tmp_path: Path) -> None:
    kept = [tmp_path / name for name in ("notes.txt", "old-1.0-py3-none-any.whl")]
    for path in kept:
        path.write_bytes(b"mine")
    words = [sys.executable, str(SCRIPT), "collect", str(tmp_path), "3.12", "scypi"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: constraints.txt has no scypi; take names from it\n"
    assert all(path.is_file() for path in kept)


def test_its_study_asks_for_a_gpu_and_for_every_runtime_of_one() -> None:
    study = read("gpu-check")
    assert study.device == "cuda"
    assert {"torchscript", "saved_model", "stablehlo", "onnx_runtime", "onnx_tensorrt"} <= {*study.runtimes}


@pytest.mark.parametrize(("cores", "studies"), [(2, ["gpu-check"]), (16, ["gpu-check", "many-cores"])])
def test_a_machine_with_many_cores_is_asked_about_them_too(
    cores: int, studies: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def measure(study: str, device: str, *_: object) -> int:
        measured.append(study)
        assert device == "cpu" or study == "gpu-check"
        # Of two codes neither hides the other.
        return len(measured) % 2

    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(gpu_check, "_cores", lambda: cores)
    monkeypatch.setattr(gpu_check, "_measure", measure)
    assert gpu_check.run(tmp_path / "out", tmp_path) == 1
    assert measured == studies
    assert [*read("many-cores").threads] == [1, 4]


def test_every_library_of_a_gpu_is_brought_by_make_or_by_the_environment_of_the_study() -> None:
    told = (SCRIPT.parents[1] / "Makefile").read_text().partition("\ngpu:")[2].partition("\n\n")[0]
    (apart,) = read("gpu").environments
    for name in plugins.names("serve.runtimes"):
        literals = plugins.literals("serve.runtimes", name)
        for package in literals.get("CUDA_PACKAGES", ()):
            # TensorRT comes with its machine.
            assert package in told or package in apart.packages or name == "onnx_tensorrt", package
        if "tensorflow[and-cuda]" in literals.get("CUDA_PACKAGES", ()) and name != "saved_model_xla":
            assert name in apart.runs


@pytest.mark.full
def test_without_two_frameworks_the_third_goes_the_whole_way(tmp_path: Path) -> None:
    """On the processor; what is missing, or is of GPUs alone, is a row with its reason."""
    absent = tmp_path / "absent"
    absent.mkdir()
    (absent / "sitecustomize.py").write_text(WITHOUT)
    env = os.environ | {"PYTHONPATH": str(absent), "CUDA_VISIBLE_DEVICES": ""}
    words = [sys.executable, str(SCRIPT), "run", str(tmp_path / "out"), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The report needs altair" in done.stdout
    assert "not measured: train of synthetic-28-cnn-keras_tf-s0 failed: keras_tf needs tensorflow, keras" in done.stdout
    assert "cannot use TensorrtExecutionProvider: no GPU" in done.stdout
    assert (tmp_path / "out" / "gpu-check.zip").is_file()
    told = subprocess.run(
        [sys.executable, "-m", "loadtest", "results", str(tmp_path / "out" / "gpu-check.zip"), "--format", "json"],
        capture_output=True, check=True,
    )  # fmt: skip
    rows = json.loads(told.stdout)
    measured = {row["runtime"] for row in rows if row["status"] == "done"}
    assert {"torchscript", "onnx_runtime"} <= measured
    assert {row["framework"] for row in rows if row["status"] == "done"} <= {"pytorch", None}


@pytest.mark.full
def test_a_runtime_in_an_environment_of_its_own_is_measured_there(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An environment that has this one's packages, in a folder that tells it apart."""
    monkeypatch.setenv("MEDSERVE_ENVIRONMENTS", str(tmp_path / "environments"))
    apart = Environment(name="apart", runs=("onnx_runtime",))
    programs = environments.make(apart)
    (site,) = (programs.parent / "lib").glob("python*/site-packages")
    here = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "these.pth").write_text(here)
    study = tmp_path / "apart.toml"
    text = MINI.format(
        dataset="synthetic", runtimes='["torchscript", "onnx_runtime"]', null="false", profiles='["in-process-1"]'
    )
    study.write_text(f'{text}\n[[environments]]\nname = "apart"\nruns = ["onnx_runtime"]\n')
    done = stage("medserve.cli", "run", str(study), "--out", str(tmp_path / "run"), "--json")
    assert done.returncode == 0, done.stderr
    results = [store.read_json(path, Result) for path in (tmp_path / "run" / "results").glob("*/0/result.json")]
    found = {result.cell.deployment.runtime: result.process["timer"]["environment"] for result in results}
    assert found == {"torchscript": Path(sys.prefix).name, "onnx_runtime": programs.parent.name}
