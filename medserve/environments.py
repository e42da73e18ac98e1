"""Environments of their own for servers, versions and libraries that cannot share one: made once by venv and pip, kept.

    ROOT/NAME-DIGEST/    a virtual environment, with `environment.json`: what it was made of and every version in it

ROOT is MEDSERVE_ENVIRONMENTS, else ~/.cache/medserve/environments. The digest is of packages, constraints and Python.

`python -m medserve.environments make ENVIRONMENT` makes one (JSON of `medserve.spec.Environment`) and prints its
programs' folder; `python -m medserve.environments start CPUS PROGRAM...` runs a program on these cores, and ends it and
everything that it started when it is told to, or when its own parent ends.
"""

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import msgspec

from medserve import errors, machine, process, store
from medserve.errors import BadInput, CannotRun
from medserve.spec import Environment, Noun

MANIFEST = "environment.json"


class Installed(Noun, frozen=True, kw_only=True):
    """`environment.json`: written when an environment is complete, with the version of every package in it."""

    environment: Environment
    python: str
    versions: dict[str, str]


def root() -> Path:
    """The folder of all environments."""
    return Path(os.environ.get("MEDSERVE_ENVIRONMENTS") or Path.home() / ".cache" / "medserve" / "environments")


def place(environment: Environment) -> Path:
    """The folder of an environment, made or not.

    Raises BadInput when its constraints file is missing, or its Python is not one.
    """
    digest = sha256(store.encode([environment.packages, _constraints(environment), _python(environment)[1]]))
    return root() / f"{environment.name}-{digest.hexdigest()[:12]}"


def installed(folder: Path) -> Installed | None:
    """What is in the folder of an environment; null where it is not complete."""
    path = folder / MANIFEST
    return store.read_json(path, Installed) if path.is_file() else None


def programs(environment: Environment) -> Path:
    """The folder of its programs, `python` among them. Raises as `place`, and CannotRun when it is not complete."""
    folder = place(environment)
    if installed(folder) is None:
        raise CannotRun(f"environment {environment.name} is not made: {folder} is missing or incomplete")
    return folder / "bin"


def make(environment: Environment) -> Path:
    """Make an environment where it is missing. Returns the folder of its programs.

    Raises BadInput as `place`, CannotRun with pip's last line when a package cannot be installed.
    """
    folder = place(environment)
    with store.locked(folder):
        if installed(folder) is None:
            shutil.rmtree(folder, ignore_errors=True)
            python, version = _python(environment)
            _run(environment, [python, "-m", "venv", str(folder)])
            pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
            pins = ["--constraint", environment.constraints] if environment.constraints else []
            if environment.packages:
                _run(environment, [*pip, "install", "--quiet", *environment.packages, *pins])
            listed = json.loads(_run(environment, [*pip, "list", "--format", "json"]))
            found = {package["name"]: package["version"] for package in listed}
            made = Installed(environment=environment, python=version, versions=found)
            store.write_json(folder / MANIFEST, made)
    return folder / "bin"


def _constraints(environment: Environment) -> str:
    if not environment.constraints:
        return ""
    try:
        return Path(environment.constraints).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            f"environment {environment.name}: its constraints {environment.constraints} cannot be read ({error}); "
            f"the path is from the folder that you are in ({Path.cwd()})"
        ) from None


def _python(environment: Environment) -> tuple[str, str]:
    """The interpreter of an environment, and its version."""
    if not environment.python:
        return sys.executable, sys.version.split()[0]
    try:
        words = [environment.python, "-c", "import sys; print(sys.version.split()[0])"]
        return environment.python, subprocess.run(words, capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise BadInput(f"environment {environment.name}: {environment.python} is no Python here ({error})") from None


def _run(environment: Environment, words: list[str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise CannotRun(f"environment {environment.name} cannot be made: {lines[-1] if lines else done.returncode}")
    return done.stdout


def _start(cpus: tuple[int, ...], words: list[str]) -> int:
    """Run a program to its end, or to SIGTERM. Returns its exit code."""
    import psutil  # a serving image does without

    process.adopt_orphans()
    machine.pin(cpus)
    child = subprocess.Popen(words)
    try:
        return child.wait()
    except KeyboardInterrupt:
        return errors.INTERRUPTED
    finally:
        child.terminate()
        me = psutil.Process()
        # Some programs start others in sessions of their own, which become this process's children.
        for _ in range(2):
            for one in psutil.wait_procs(me.children(recursive=True), timeout=3.0)[1]:
                with suppress(psutil.NoSuchProcess):
                    one.kill()


if __name__ == "__main__":
    verb, *words = sys.argv[1:]
    if verb == "make":
        errors.main(lambda: print(make(msgspec.json.decode(words[0], type=Environment))))
    process.interruptible()
    sys.exit(_start(tuple(int(cpu) for cpu in words[0].split(",") if cpu), words[1:]))
