"""Our own sources never unpickle: weights, scores, golden images and manifests are data.

A model file is not: TorchScript, SavedModel, AOTInductor and the others are executed by their framework. That an
artifact is a program is said where people meet it, and it is not loaded before its manifest is the one that was pinned.
"""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import check_stage, run_stage
from recertify import recertify

from medserve import store

ROOT = Path(__file__).parents[2]
PACKAGES = ("medserve", "train", "export", "serve", "loadtest")
UNSAFE = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def faults(source: str) -> list[str]:
    """Imports of what unpickles, and calls that do unless they are told not to."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found += [name.name for name in names if name.name.partition(".")[0] in UNSAFE]
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in UNSAFE:
                found.append(module)
            case ast.keyword(arg="allow_pickle", value=value) if not (
                isinstance(value, ast.Constant) and not value.value
            ):
                found.append("allow_pickle")
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load"), keywords=keywords) if not any(
                keyword.arg == "weights_only" and getattr(keyword.value, "value", None) is True for keyword in keywords
            ):
                found.append("torch.load")
    return found


def test_no_source_unpickles() -> None:
    sources = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert len(sources) > 50
    assert {str(path): said for path in sources if (said := faults(path.read_text()))} == {}


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import pickle", ["pickle"]),
        ("from joblib.externals import x", ["joblib.externals"]),
        ("np.load(path, allow_pickle=True)", ["allow_pickle"]),
        ("np.load(path, allow_pickle=False)", []),
        ("torch.load(path)", ["torch.load"]),
        ("torch.load(path, weights_only=False)", ["torch.load"]),
        ("torch.load(path, weights_only=True)", []),
    ],
)
def test_what_unpickles_is_found(source: str, said: list[str]) -> None:
    assert faults(source) == said


WRITER = """
import sys
import torch

class Writer(torch.nn.Module):
    def __init__(self, inner, path: str):
        super().__init__()
        self.inner = inner
        self.path = path

    def forward(self, image):
        torch.save(image, self.path)
        return self.inner(image)

model, path = sys.argv[1:]
torch.jit.script(Writer(torch.jit.load(model), path)).save(model)
"""


def test_an_artifact_is_a_program_and_only_a_pinned_manifest_keeps_another_one_out(
    torchscript: Path, tmp_path: Path
) -> None:
    """It computes the trainer's function to the last digit, and all its digests agree."""
    forged, written = Path(shutil.copytree(torchscript, tmp_path / "cells")), tmp_path / "written"
    program = tmp_path / "writer.py"  # a file, for TorchScript compiles the source
    program.write_text(WRITER)
    words = [sys.executable, "-W", "ignore", str(program), str(forged / "1" / "model.pt"), str(written)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    recertify(forged)
    reviewed = store.sha256(torchscript / store.ARTIFACT)
    refused = run_stage("serve", str(forged), "--port", "0", "--sha256", reviewed)
    assert (refused.returncode, "use the file that was reviewed" in refused.stderr) == (2, True)
    assert not written.exists()
    check_stage("loadtest", "time", str(forged), "--seconds", "0.1")
    assert written.exists()


@pytest.mark.parametrize("place", ["README.md", "SECURITY.md", "serve --help"])
def test_it_is_said_where_people_meet_it_that_an_artifact_is_a_program(place: str) -> None:
    said = check_stage("serve", "--help").stdout if place == "serve --help" else (ROOT / place).read_text()
    assert "an artifact is a program" in " ".join(said.split()).lower()
    assert "--sha256" in said
