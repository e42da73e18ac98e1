"""Jobs of tests that run in one framework, each in a process of its own, for two never share one; what they write."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from medserve import plugins

Weights = dict[str, NDArray[np.float32]]


def run(name: str, *words: str, **env: str) -> str:
    """Run a script of this folder to its end; what it printed."""
    script = Path(__file__).with_name(name)
    env = {**os.environ, **env}
    done = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Outcome:
    """What one framework's job wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found = self.arrays("found")

    def arrays(self, name: str) -> Weights:
        with np.load(self.folder / f"{name}.npz") as arrays:
            return dict(arrays)

    def weights(self, name: str) -> Weights:
        """Those of a file, or of a folder that a trainer saved into."""
        saved = self.folder / name / "weights.safetensors"
        weights: Weights = load_file(saved if saved.is_file() else self.folder / f"{name}.safetensors")
        return weights


class Jobs:
    """Runs a script once for each framework that is asked for; `words` and `env` are the script's."""

    def __init__(self, script: str, folder: Path, *words: str, **env: str) -> None:
        self.script = script
        self.folder = folder
        self.words = words
        self.env = env
        self.done: dict[str, Outcome] = {}

    def __getitem__(self, framework: str) -> Outcome:
        if absent := plugins.missing("train.frameworks", framework):
            pytest.skip(f"{framework} needs {', '.join(absent)}, which is not installed")
        if framework not in self.done:
            folder = self.folder / framework
            folder.mkdir()
            run(self.script, framework, str(folder), *self.words, **self.env)
            self.done[framework] = Outcome(folder)
        return self.done[framework]
