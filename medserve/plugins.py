"""Plug-ins are files of a package. Literals at the top of a file describe it; it is imported only when chosen."""

import ast
import importlib
import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType

from medserve import process
from medserve.errors import CannotRun, unknown


def names(package: str) -> list[str]:
    """The names of the plug-ins of a package such as `serve.runtimes`, sorted, without importing them."""
    return sorted(path.stem for path in _folder(package).glob("*.py") if not path.stem.startswith("_"))


@cache
def literals(package: str, name: str) -> Mapping[str, tuple[str, ...]]:
    """The upper-case tuples of strings in a plug-in's file (REQUIRES, READS, WRITES), without importing it."""
    constants: dict[str, tuple[str, ...]] = {}
    for node in ast.parse(_path(package, name).read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id.isupper():
            try:
                value = ast.literal_eval(node.value)
            except ValueError:
                continue
            if isinstance(value, tuple) and all(isinstance(item, str) for item in value):
                constants[node.targets[0].id] = value
    return constants


@cache
def literal(package: str, name: str, constant: str) -> object:
    """The value of one upper-case literal of a plug-in's file, without importing it; null where it has none."""
    for node in ast.parse(_path(package, name).read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == constant:
            return ast.literal_eval(node.value)
    return None


def missing(package: str, name: str) -> list[str]:
    """The top-level modules that a plug-in REQUIRES and that are not installed, without importing any."""
    required = literals(package, name).get("REQUIRES", ())
    return [module for module in required if importlib.util.find_spec(module) is None]


def load(package: str, name: str) -> ModuleType:
    """Import a plug-in. Raises BadInput for an unknown name, CannotRun with the reason if the import fails."""
    _path(package, name)
    if absent := missing(package, name):
        raise CannotRun(f"{name} needs {', '.join(absent)}, which is not installed; run medserve doctor")
    try:
        # Some libraries tell the terminal of a CPU machine that it has no GPU.
        with process.quiet():
            return importlib.import_module(f"{package}.{name}")
    except ImportError as error:
        raise CannotRun(f"{name} cannot be imported: {error}") from error


def need(module: str, purpose: str) -> ModuleType:
    """Import a library that only part of a plug-in needs. Raises CannotRun with `purpose` if the import fails."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise CannotRun(f"{purpose} needs {module}, which cannot be imported: {error}") from error


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise CannotRun(f"the package {package} is not installed; pip install -e . in the checkout")
    return Path(next(iter(spec.submodule_search_locations)))


def _path(package: str, name: str) -> Path:
    if name not in names(package):
        kind = package.rpartition(".")[2]
        kind = f"{kind.removesuffix('ies')}y" if kind.endswith("ies") else kind.removesuffix("s")
        raise unknown(kind, name, names(package))
    return _folder(package) / f"{name}.py"
