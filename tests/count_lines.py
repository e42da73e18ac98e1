"""`python tests/count_lines.py [FOLDER]`: lines of code per package, without blank lines, comments and docstrings.

For people to look at: nothing fails by these numbers.
"""

import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path

STAGES = ("medserve", "train", "export", "serve", "loadtest")
IGNORED = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
LONG = 350


def lines_of_code(source: str) -> int:
    """The lines on which a token lies that is neither a comment nor part of a docstring."""
    # Every string that is a statement is documentation: a docstring, or a string below an assignment.
    strings = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    documented = {line for node in strings for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in IGNORED:
            found.update(range(token.start[0], token.end[0] + 1))
    return len(found - documented)


def package(path: Path) -> str:
    """The package of a file as it is listed: the rooms of loadtest, other stages as a whole; benchmarks apart."""
    parts = path.with_suffix("").parts
    if any(part.startswith("benchmark") for part in parts):
        return f"{parts[0]} benchmarks"
    return ".".join(parts[:2]) if parts[0] == "loadtest" and len(parts) > 2 else parts[0]


def main(root: Path) -> None:
    """Print the table."""
    files = [path for stage in (*STAGES, "tests") for path in sorted((root / stage).rglob("*.py"))]
    counts = {path.relative_to(root): lines_of_code(path.read_text()) for path in files}
    lines: Counter[str] = Counter()
    modules: Counter[str] = Counter()
    for path, count in counts.items():
        lines[package(path)] += count
        modules[package(path)] += 1
    width = max(map(len, lines))
    print(f"{'':<{width}} {'modules':>8} {'lines':>8}")
    for name in lines:
        print(f"{name:<{width}} {modules[name]:>8} {lines[name]:>8,}")
    product = [name for name in lines if name != "tests" and not name.endswith("benchmarks")]
    benchmarks = [name for name in lines if name.endswith("benchmarks")]
    for title, names in (("product", product), ("benchmarks", benchmarks), ("tests", ["tests"])):
        print(f"{title:<{width}} {sum(modules[name] for name in names):>8} {sum(lines[name] for name in names):>8,}")
    sizes = {path: len((root / path).read_text().splitlines()) for path in counts if path.parts[0] != "tests"}
    small = sum(size < 60 for size in sizes.values())
    print(f"{small} modules below 60 lines, {sum(size > LONG for size in sizes.values())} above {LONG}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1])
