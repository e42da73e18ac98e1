"""The terms of reports and `--help` texts, from `glossary.toml`."""

import tomllib
from collections.abc import Mapping
from pathlib import Path

GLOSSARY: Mapping[str, str] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
"""Definition by term. Terms have the spelling of the report's columns where these have the term."""
