"""A study of a few lines, as a file of its user."""

from pathlib import Path

from medserve import study, study_file

MINIMAL = """
name = "mini"
title = "Mini"
datasets = ["synthetic"]
sizes = [28, 64]
architectures = ["cnn"]
frameworks = ["pytorch"]
formats = ["native", "onnx"]

[[measure]]
profiles = ["in-process-1", "closed-1"]
seconds = 1.5

[[measure]]
profiles = ["open-50"]
sizes = [28]
"""


def read(tmp_path: Path, text: str) -> study.Study:
    path = tmp_path / "mini.toml"
    path.write_text(text)
    return study_file.read(str(path))
