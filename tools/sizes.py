"""Hold functions and files to their sizes: `sizes.py airflow_provider_sft trainer`.

A function's body is its lines without signature, docstring, blank lines and comments. A test is read as often as
the code, but is no logic: pass the packages, not tests/.
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

MAX_MEDIAN, MAX_P90, MAX_BODY, MAX_FILE = 10, 30, 50, 300
# The flat recipe is one reading; tables hold no logic.
MAX_RECIPE, RECIPE = 60, "trainer/train.py"
TABLES = ("trainer/schema/keys.py", "trainer/schema/tables.py")


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef, source: list[str]) -> int:
    body = function.body
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]
    if not body:
        return 0
    lines = source[body[0].lineno - 1 : body[-1].end_lineno]
    return sum(1 for line in lines if line.strip() and not line.strip().startswith("#"))


def measure_functions(path: Path) -> Iterator[tuple[int, str]]:
    text = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield body_lines(node, text.splitlines()), f"{path}:{node.lineno} {node.name}"


def find_excesses(bodies: list[tuple[int, str]], files: list[tuple[int, str]]) -> list[str]:
    """A sentence for each rule that is broken."""
    counts = sorted(count for count, _ in bodies)
    median, p90 = statistics.median(counts), counts[int(len(counts) * 0.9)]
    sizes = f"{len(counts)} functions: body median {median:.0f} (at most {MAX_MEDIAN}), p90 {p90} (at most {MAX_P90})"
    print(f"{sizes}, longest {counts[-1]} lines; longest file {max(files)[0]} lines")
    excesses = [sizes] if median > MAX_MEDIAN or p90 > MAX_P90 else []
    excesses += [
        f"{where}: {n} lines, at most {limit(where)}" for n, where in sorted(bodies) if n > limit(where)
    ]
    long_files = [(n, where) for n, where in sorted(files) if n > MAX_FILE and where not in TABLES]
    return excesses + [f"{where}: {n} lines, at most {MAX_FILE}" for n, where in long_files]


def limit(where: str) -> int:
    return MAX_RECIPE if where.startswith(RECIPE) else MAX_BODY


def main(argv: list[str]) -> int:
    paths = sorted(path for root in argv for path in Path(root).rglob("*.py"))
    bodies = [measured for path in paths for measured in measure_functions(path)]
    files = [(len(path.read_text(encoding="utf-8").splitlines()), str(path)) for path in paths]
    excesses = find_excesses(bodies, files)
    print("\n".join(excesses), file=sys.stderr, end="\n" if excesses else "")
    return 1 if excesses else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
