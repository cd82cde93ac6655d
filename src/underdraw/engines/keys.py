"""What a compiled program depends on, as a name that is the same in every process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from hashlib import blake2b
from pathlib import Path
from types import CodeType
from typing import Any

from underdraw.backends.tree import Structure, is_array, is_parameters, no_data
from underdraw.engines.engine import Question
from underdraw.formats import opening
from underdraw.names import __version__

ROOMS = ("backends", "controls", "networks", "sampling")
"""Where programs and what acts inside of them are written."""
NOT_ELSEWHERE = sys.stdlib_module_names | {"underdraw"}
OURS = tuple(f"underdraw.{room}." for room in ROOMS)


@cache
def sources(home: Path = Path(__file__).parents[1]) -> str:
    """A digest of what this version of underdraw computes: of its programs' sources, which change
    from commit to commit under one number of version. Reading them takes 10 ms."""
    seen = blake2b(__version__.encode(), digest_size=16)
    for path in (path for room in ROOMS for path in sorted((home / room).rglob("*.py"))):
        seen.update(f"\n{path.relative_to(home).as_posix()}\n".encode())
        seen.update(opening.read_bytes(path))
    return seen.hexdigest()


def written(function: Callable[..., Any]) -> Any:
    """What a function does as far as itself tells: its code, defaults, and what it encloses.
    Programs from elsewhere may share a name."""
    code = getattr(function, "__code__", None)
    if code is None:
        return function
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    name = function.__module__, function.__qualname__
    if function.__module__.startswith(OURS) and not cells:
        return name  # `sources` tells what it does
    defaults = getattr(function, "__defaults__", None), getattr(function, "__kwdefaults__", None)
    return name, _steps(code), defaults, cells


def _steps(code: CodeType) -> Any:
    """Code without the places it came from, and its sets in order."""
    constants = [
        _steps(one)
        if isinstance(one, CodeType)
        else sorted(map(repr, one))
        if isinstance(one, frozenset)
        else one
        for one in code.co_consts
    ]
    return code.co_name, code.co_code, code.co_names, constants


def acting(structure: Structure) -> list[Any]:
    """What the methods of those classes do that are in a structure and not of the library: hooks
    of controls from elsewhere."""
    found = {name: base for kind in _classes(structure) for name, base in _bases(kind)}
    return [
        (name, word, written(method))
        for name, base in sorted(found.items())
        for word, method in sorted(vars(base).items())
        if hasattr(method, "__code__") and (word == "__call__" or not word.startswith("__"))
    ]


def _classes(structure: Structure) -> Iterator[type]:
    kind = structure.names[0] if structure.kind == "fixed" else structure.kind
    if isinstance(kind, type):
        yield kind
    for child in structure.children:
        yield from _classes(child)


def _bases(kind: type) -> Iterator[tuple[str, type]]:
    for base in kind.__mro__:
        if base.__module__.split(".")[0] not in NOT_ELSEWHERE:
            yield f"{base.__module__}.{base.__qualname__}", base


def key_of(question: Question, leaves: Sequence[Any], structure: Structure) -> str | None:
    """A name of program, kind and layout of the network, and structure, shapes and dtypes of the
    inputs, but of no number; None where something in it means nothing to another process.

    Args:
        leaves, structure: of the question's inputs (`backends.tree.flatten`).
    """
    if no_data(structure) is not None or any(map(is_parameters, leaves)):
        return None
    model = question.model
    arrays = [
        (tuple(leaf.shape), str(leaf.dtype), str(leaf.device)) if is_array(leaf) else "number"
        for leaf in leaves
    ]
    layers = [(name, tuple(p.shape), p.stride()) for name, p in model.named_parameters()]
    said = repr(
        (
            *(question.program.name, type(model).__name__, model.config, question.nn),
            *(str(model.dtype), str(model.device), layers, structure, arrays),
            *(sources(), written(question.program.function), acting(structure)),
        )
    )
    # Where an object has no words of its own, its address stands in them.
    return None if " at 0x" in said else blake2b(said.encode(), digest_size=16).hexdigest()
