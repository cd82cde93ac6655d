"""Exceptions from the rule that imports stand at the top of a file: each is needed and is allowed.

`ruff` holds the rule itself; `lint-imports` fails where an exception of its own matches nothing.
"""

import ast
import re
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).parents[1]
LATE = "PLC0415"
MAY_BE_MISSING = {"msgpack", "bitsandbytes", "torch", "jax", "mindspore", "scipy", "transformers"}
SLOW_TO_IMPORT = {"tokenizers", "huggingface_hub"}
ALLOWED = MAY_BE_MISSING | SLOW_TO_IMPORT


def exceptions():
    """Patterns of files that may import inside functions, one for each alternative in braces."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for pattern, codes in settings["tool"]["ruff"]["lint"]["per-file-ignores"].items():
        if LATE in codes:
            before, names, after = re.fullmatch(r"([^{]*)(?:{(.*)})?([^}]*)", pattern).groups("")
            yield from (f"{before}{name}{after}" for name in names.split(","))


def imported(nodes):
    """Modules that these statements import, by full name."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def late_imports(path):
    """What functions of a file import. In place of a module of ours stand the frameworks that it
    imports at its top, where it does."""
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for name in imported(ast.walk(function)):
                own = ROOT / "src" / f"{name.replace('.', '/')}.py"
                heavy = set(imported(ast.parse(own.read_text()).body)) if own.exists() else set()
                yield from (heavy & ALLOWED) or {name.split(".")[0]}


@pytest.mark.parametrize("pattern", list(exceptions()))
def test_an_exception_is_needed(pattern):
    files = list(ROOT.glob(pattern.replace("/**", "/**/*.py")))
    late = {name for path in files for name in late_imports(path)}
    assert late, f"{pattern} in pyproject.toml matches no import inside a function: remove it"
    if pattern.startswith("src/") and "/cli/" not in pattern:
        assert late <= ALLOWED, f"{pattern}: {late - ALLOWED} belong to the top"


def test_no_single_line_is_excepted():
    for path in (ROOT / "src").rglob("*.py"):
        assert LATE not in path.read_text(), f"{path}: exceptions are listed in pyproject.toml"
