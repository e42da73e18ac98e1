"""Nothing that is loaded can run code: no pickle in any form, anywhere in the sources."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
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
