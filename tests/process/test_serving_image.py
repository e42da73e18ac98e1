"""A serving image holds the wrapper and one runtime: what it installs is enough, and no more than that runtime's."""

import json
import os
import re
import socket
import subprocess
import sys
import tomllib
import urllib.parse
from importlib import metadata
from pathlib import Path

import pytest
from stub_server import UNIFORM, stub

from medserve import plugins

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
WITH_MODULES = [
    name for name in plugins.names("serve.runtimes") if plugins.literals("serve.runtimes", name)["REQUIRES"]
]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(names: list[str]) -> set[str]:
    """The distributions and what they require in turn, as installed here."""
    found: set[str] = set()
    # Requirements may depend on the platform: "name; marker".
    waiting = [canonical(name.split(";")[0]) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        try:
            required = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        waiting += [canonical(re.split(r"[^\w.-]", one, maxsplit=1)[0]) for one in required if "extra ==" not in one]
    return found


@pytest.mark.parametrize("name", WITH_MODULES)
def test_a_runtime_has_an_extra_with_what_it_requires(name: str) -> None:
    offered = closure(EXTRAS[canonical(name)])
    of_module = metadata.packages_distributions()
    for module in plugins.literals("serve.runtimes", name)["REQUIRES"]:
        if module not in of_module:
            pytest.skip(f"{module} is not installed")
        assert offered & set(map(canonical, of_module[module]))
    assert set(EXTRAS[canonical(name)]) <= set(EXTRAS["bench"])


def test_an_extra_is_a_runtime_a_kind_of_image_files_or_many_machines() -> None:
    assert set(EXTRAS) == {canonical(name) for name in WITH_MODULES} | {"bench", "cluster", "dicom"}
    assert set(EXTRAS["dicom"]) <= set(EXTRAS["bench"])


def test_the_wrapper_needs_nothing_but_the_basic_dependencies(empty: Path) -> None:
    code = f"""
import sys
before = set(sys.modules)  # what an installation loads by itself
import json
from pathlib import Path
import serve.__main__, serve.app, serve.protocol, serve.scheduler, uvicorn
from medserve import cli
from medserve.spec import Deployment
from serve.runtimes import open_runtime
open_runtime(Path({str(empty)!r}), Deployment(artifact="empty", runtime="null"))
print(json.dumps(sorted({{name.partition(".")[0] for name in set(sys.modules) - before}})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    allowed = closure(PROJECT["dependencies"])
    of_module = metadata.packages_distributions()
    foreign = {
        module: of_module[module]
        for module in json.loads(done.stdout)
        if module in of_module and not allowed & set(map(canonical, of_module[module])) and not (ROOT / module).is_dir()
    }
    assert foreign == {}


def test_the_image_is_built_from_what_there_is() -> None:
    text = (ROOT / "Dockerfile").read_text()
    default = re.search(r"ARG RUNTIME=([\w-]+)", text)
    assert default is not None
    assert default[1] in set(EXTRAS) - {"bench", "dicom"}
    copied = set(" ".join(re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE)).split())
    assert all((ROOT / name).exists() for name in copied)
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert set(wheel["packages"]) <= copied


def instruction(name: str) -> str:
    """What follows the last line of the Dockerfile that begins with `name`."""
    return re.findall(rf"^{name} (.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[-1]


def command(name: str) -> list[str]:
    """The words of an instruction in JSON, with this Python in place of the image's."""
    python, *words = json.loads(instruction(name))
    assert python == "/medserve/bin/python"
    return [sys.executable, *words]


def healthy(port: int) -> bool:
    done = subprocess.run(
        command("HEALTHCHECK CMD"), env={**os.environ, "MEDSERVE_PORT": str(port)}, capture_output=True
    )
    return done.returncode == 0


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_the_image_runs_as_a_user_by_number_who_is_not_root() -> None:
    found = re.fullmatch(r"(\d+):(\d+)", instruction("USER"))
    assert found is not None
    assert 0 not in map(int, found.groups())


def test_the_health_check_follows_the_port_of_the_server(empty: Path) -> None:
    port, other = free_port(), free_port()
    assert instruction("ENV") == f"MEDSERVE_PORT={instruction('EXPOSE')}"
    words = [*command("ENTRYPOINT"), str(empty), "--runtime", "null", "--host", "127.0.0.1"]
    env = {**os.environ, "MEDSERVE_PORT": str(port)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=env) as server:
        try:
            assert server.stdout is not None
            assert f"http://127.0.0.1:{port}/" in server.stdout.readline()
            assert healthy(port)
            assert not healthy(other)
        finally:
            server.terminate()
    done = subprocess.run([*words, "--port", str(other)], capture_output=True, text=True, env=env)
    assert done.returncode == 2
    assert done.stderr.strip() == f"error: --port is {other}, but MEDSERVE_PORT is {port}; set MEDSERVE_PORT alone"


def test_a_server_that_answers_and_is_not_ready_is_not_healthy() -> None:
    with stub(lambda handler: handler.scores(UNIFORM)) as server:  # it knows no readiness: 404
        assert not healthy(urllib.parse.urlsplit(server.url).port or 0)
