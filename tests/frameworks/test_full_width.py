"""Every architecture at full width and 224 px: one function in all frameworks and in all their exports.

Minutes for each, so only where they are asked for: `make test-full`.
"""

import subprocess
import sys
from pathlib import Path

import job
import msgspec
import numpy as np
import pytest

from medserve import plugins
from medserve.certificate import compare
from medserve.models import Certificate
from medserve.tables import ARCHITECTURES

# One at a time: a conversion of the largest network takes 13 GB.
pytestmark = [pytest.mark.full, pytest.mark.xdist_group("full width")]
FRAMEWORKS = sorted(plugins.names("train.frameworks"), key=lambda name: name != "pytorch")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_exports_at_full_width_hold_their_certificates(architecture: str, tmp_path: Path) -> None:
    if absent := [name for name in FRAMEWORKS if plugins.missing("train.frameworks", name)]:
        pytest.skip(f"{', '.join(absent)} cannot be imported")
    for framework in FRAMEWORKS:
        folder = tmp_path / framework
        folder.mkdir()
        forms = plugins.literals("export.frameworks", framework)["WRITES"]
        for step in ("scores", *forms):
            job.run("full_width_job.py", framework, architecture, str(folder), step)
        exact = np.load(tmp_path / "exact.npy")
        # Otherwise everything would agree with everything.
        assert np.ptp(exact, 0).max() > 0.2
        scores = np.load(folder / "scores.npy")
        proofs = {framework: compare(scores, exact, exact.argmax(1), runtime=framework, versions={})}
        for form in forms:
            proofs[form] = certificate(folder / form, form, tmp_path)
        for name, proof in proofs.items():
            print(f"{architecture} {framework} {name}: {proof.max_abs:.1e}")
            assert proof.valid, (framework, name, proof.reason)


def certificate(folder: Path, form: str, beside: Path) -> Certificate:
    """Of the export in `folder` against the scores in float64, in a process without its framework's exporter."""
    code = (
        "import sys\nfrom pathlib import Path\nimport msgspec\nimport numpy as np\n"
        "from export.verify import scores_of\nfrom medserve.certificate import compare\n"
        "folder, form, beside = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])\n"
        "reference = np.load(beside / 'exact.npy')\n"
        "scores = scores_of(folder, form, reference.shape[1], np.load(beside / 'images.npy'))\n"
        "proof = compare(scores, reference, reference.argmax(1), runtime=form, versions={})\n"
        "print(msgspec.json.encode(proof).decode())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), form, str(beside)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Certificate)
