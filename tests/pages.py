"""Snippets of pages and docstrings: where they stand, and what can be told without running one."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import underdraw

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)
INDENTED = re.compile(r"(?:^|\n\n)((?: {4}.*(?:\n|$))+)")
"""Indented lines behind an empty one: of a page commands, of a docstring Python."""
INLINE = re.compile(r"`(underdraw [a-z]+ [^`]*)`")
LEFT_OUT = re.compile(r"\.\.\.|[A-Z]{3,}")
"""In commands that are spoken of rather than shown: `--grounding PATH`."""


@dataclass(frozen=True)
class Snippet:
    place: str
    """The page or the public name, and the line in it."""
    text: str


def blocks(page: str, *languages: str) -> list[Snippet]:
    """The fenced blocks of a page in some languages, in their order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Snippet(f"{page}:{text[: found.start()].count(chr(10)) + 1}", found[2])
        for found in FENCE.finditer(text)
        if found[1] in languages
    ]


def commands(page: str) -> list[str]:
    """The shell commands of a page in their order: of fenced and of indented blocks."""
    text = (ROOT / page).read_text(encoding="utf-8")
    shown = [(m.start(), m[2]) for m in FENCE.finditer(text) if m[1] in ("bash", "")]
    plain = FENCE.sub(lambda found: "\n" * len(found[0]), text)
    shown += [(m.start(1), inspect.cleandoc(m[1])) for m in INDENTED.finditer(plain)]
    lines = [line for _, block in sorted(shown) for line in block.splitlines()]
    return [part.strip() for line in lines for part in line.split("&&") if part.strip()]


def mentioned() -> list[list[str]]:
    """Whole commands in the running text of all pages and in the help's examples."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("src/**/*.md")]
    texts = [INLINE.findall(page.read_text(encoding="utf-8")) for page in pages]
    from underdraw.cli import app

    helps = [
        app.EXAMPLES,
        *(getattr(c.callback, "examples", "") for c in app.app.registered_commands),
    ]
    texts += [re.findall(r"^  (underdraw .+)$", text, re.M) for text in helps]
    lines = dict.fromkeys(line for found in texts for line in found if not LEFT_OUT.search(line))
    return [shlex.split(line)[1:] for line in lines]


def public() -> Iterator[tuple[str, Any]]:
    """Every public name with what it stands for, and the public methods of classes."""
    for name in underdraw.__all__:
        value = getattr(underdraw, name)
        yield name, value
        if inspect.isclass(value):
            for method, held in vars(value).items():
                inner = getattr(held, "__func__", held)
                if not method.startswith("_") and inspect.isfunction(inspect.unwrap(inner)):
                    yield f"{name}.{method}", inner


def docstrings() -> list[Snippet]:
    """The examples in docstrings of public names."""
    found = {}
    for name, value in public():
        own = value.__doc__ if not inspect.isclass(value) else vars(value).get("__doc__")
        for block in INDENTED.findall(inspect.cleandoc(own or "")):
            found.setdefault(block, Snippet(name, inspect.cleandoc("\n" + block)))
    return list(found.values())


def examine(snippet: Snippet, names: dict[str, Any]) -> None:
    """Of a snippet that is not run: it compiles, what it imports is there, its names are known,
    and what it calls has the keywords it gives. What it makes is known by name from then on."""
    tree = ast.parse(snippet.text, snippet.place)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            exec(compile(ast.Module([node], []), snippet.place, "exec"), names)
    bound = {
        n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }
    bound |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    bound |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    names |= dict.fromkeys(bound)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id not in bound:
            assert node.id in names or hasattr(builtins, node.id), f"{snippet.place}: {node.id}"
        if isinstance(node, ast.Call):
            called = resolved(node.func, names)
            if called is not None:
                given = {word.arg: None for word in node.keywords if word.arg}
                inspect.signature(called).bind_partial(*[None] * len(node.args), **given)


def resolved(node: ast.expr, names: dict[str, Any]) -> Any:
    """What an expression of names and dots stands for; None where that is made by the snippet."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = resolved(node.value, names)
        return None if owner is None else getattr(owner, node.attr)
    return None
