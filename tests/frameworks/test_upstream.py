"""The reproductions of slow operators run by themselves, and both of their forms compute the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[1] / "upstream").glob("*.py"))


@pytest.mark.full
@pytest.mark.parametrize("script", SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_a_reproduction_compares_two_forms_of_one_function(script: Path) -> None:
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, timeout=300)
    found = json.loads(done.stdout)
    assert found["largest_difference"] < 1e-4
    assert sum(name.endswith("_ms") for name in found) >= 2
