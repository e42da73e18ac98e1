"""The README and the manuals of the stages: their size, their links, and that every command in them exists."""

import importlib
import re
import shlex
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import study_tables
import typer
from conftest import Stage
from server_process import PATIENCE, serving
from typer.testing import CliRunner

from loadtest.__main__ import COMMANDS as LOADTEST
from medserve import plugins, study_file
from medserve.cli import STAGES

ROOT = Path(__file__).parents[2]
MANUALS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", *(f"{stage}/README.md" for stage in ("train", "export")))
MANUALS += ("serve/README.md", "loadtest/README.md", "medserve/studies/README.md")
COMMAND = re.compile(r"^    (?:\.venv/bin/)?((?:medserve|python -m|make|locust|curl|docker) .*)$", re.MULTILINE)
URL = "http://127.0.0.1:8000"
CODE = re.compile(r"`((?:medserve|python -m|make) [a-z][^`]*)`")


def commands(manual: str) -> list[list[str]]:
    """The commands of a manual, in its blocks and in its lines, as words without comments."""
    text = (ROOT / manual).read_text().replace("\\\n", " ")
    found = [*COMMAND.findall(text), *(" ".join(code.split()) for code in CODE.findall(text))]
    return [shlex.split(line, comments=True) for line in found]


def exists(words: list[str]) -> bool:
    """Whether a program of medserve knows its command and options: it parses them, and is asked for its help."""
    if words[0] == "medserve" and words[1] in STAGES:
        stage, command, _ = STAGES[words[1]]
        words = [stage, *filter(None, [command]), *words[2:]]
    else:
        words = ["medserve.cli", *words[1:]] if words[0] == "medserve" else words[2:]
    if words[0] == "loadtest":
        program, words = f"loadtest.commands.{LOADTEST[words[1]]}", words[1:]
    else:
        has_parts = hasattr(importlib.import_module(words[0]), "__path__")
        program = f"{words[0]}.__main__" if has_parts else words[0]
    module = importlib.import_module(program)
    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer()
        app.command()(getattr(module, "command", None) or getattr(module, words[0].rpartition(".")[2]))
    return CliRunner().invoke(app, [*words[1:], "--help"]).exit_code == 0


@pytest.mark.parametrize("manual", study_tables.MANUALS)
def test_every_study_table_follows_from_its_bundle(manual: str) -> None:
    text = (ROOT / manual).read_text()
    assert study_tables.derived(text) == text, "make tables"


def test_bundles_of_tables_are_small_and_each_is_shown() -> None:
    bundles = sorted(study_tables.BUNDLES.glob("*.zip"))
    assert all(path.stat().st_size <= 1e6 for path in bundles)
    assert sum(path.stat().st_size for path in bundles) <= 8e6
    texts = "".join((ROOT / manual).read_text() for manual in study_tables.MANUALS)
    shown = {found[3] for found in study_tables.MARKED.finditer(texts) if found[2] != "reference"}
    assert {path.stem for path in bundles} == shown


def test_the_bundles_in_the_repository_are_verified(stage: Stage) -> None:
    """They are of every version of the schema that was published, and stay readable."""
    for path in study_tables.BUNDLES.glob("*.zip"):
        done = stage("loadtest", "verify", str(path), "--json")
        assert done.returncode == 0, done.stderr


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


@pytest.mark.parametrize("manual", MANUALS)
def test_every_link_leads_to_a_file(manual: str) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / manual).read_text())
    for link in links:
        assert link.startswith("https://") or ((ROOT / manual).parent / link).is_file(), link


@pytest.mark.parametrize("manual", MANUALS)
def test_every_command_exists(manual: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in commands(manual):
        if words[0] == "make":
            assert words[1] in targets, words
        elif words[0] == "medserve" or words[:2] == ["python", "-m"]:
            assert exists(words), words


@pytest.mark.parametrize("words", [["medserve", "load", "--rat", "5"], ["python", "-m", "serve.benchmark", "--szies"]])
def test_a_command_that_does_not_exist_is_found(words: list[str]) -> None:
    assert not exists(words)


def test_every_study_and_runtime_is_in_a_manual() -> None:
    studies = (ROOT / "medserve" / "studies" / "README.md").read_text()
    assert [name for name in study_file.names() if f"`{name}`" not in studies] == []
    runtimes = (ROOT / "export" / "README.md").read_text()
    named = [name for name in plugins.names("serve.runtimes") if name not in ("null", "delay")]
    assert [name for name in named if f"`{name}`" not in runtimes] == []


@pytest.mark.full
def test_the_stages_one_at_a_time_as_the_readme_gives_them(tmp_path: Path) -> None:
    block = [words[1:] for words in commands("README.md") if words[0] == "medserve"]
    steps = block[next(at for at, words in enumerate(block) if words[0] == "train") :][:8]
    expected = ["train", "export", "serve", "time", "tune", "explain", "load", "load"]
    assert [words[0] for words in steps] == expected
    with ExitStack() as stack:
        url = ""
        for command, *rest in steps:
            if command == "serve":
                url = stack.enter_context(serving(tmp_path / rest[0])).url
                continue
            stage, verb, _ = STAGES[command]
            arguments = [stage, *filter(None, [verb]), *(url if word == URL else word for word in rest)]
            words = [sys.executable, "-m", *arguments]
            done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=15 * PATIENCE)
            # A record on a busy machine may be found unsound; it is reported as one line and no traceback.
            assert done.returncode == 0 or (command == "load" and "Traceback" not in done.stderr), done.stderr
