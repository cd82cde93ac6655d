"""Values seen as arrays and structure.

What a network program takes and gives are trees: dataclasses, named tuples, tuples, lists and
mappings, down to leaves. An engine takes the leaves apart from the structure, runs something that
was made for this structure, and puts the outputs together again.

- *Leaves* are arrays of any framework, Python floats (numbers that may change from call to call,
  such as a strength), and whole parameter trees.
- *Structure* is everything else: classes, names, whole numbers, texts, switches, functions, values
  whose class says `is_structure` (configs), and fields of dataclasses whose metadata say `static`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any

from underdraw.backends.node import BaseRoot, Node
from underdraw.shown import shown

ARRAY, NUMBER, PARAMETERS = "array", "number", "parameters"


@dataclass(frozen=True)
class Structure:
    """A tree without its leaves; equal for equal structures, and a key of dictionaries."""

    kind: Any
    """A kind of leaf, the class of a container, or "fixed"."""
    names: tuple[Any, ...] = ()
    """Fields or keys of the children; of "fixed" the value."""
    children: tuple[Structure, ...] = ()


class _Same:
    """An object that has no hash: equal to itself alone."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


_ARRAY, _NUMBER, _PARAMETERS = (Structure(kind) for kind in (ARRAY, NUMBER, PARAMETERS))


def flatten(value: Any) -> tuple[list[Any], Structure]:
    """The leaves of a tree in order, and its structure."""
    leaves: list[Any] = []
    return leaves, _take(value, leaves)


def unflatten(structure: Structure, leaves: Any) -> Any:
    """The tree of a structure with these leaves, the inverse of `flatten`."""
    return _build(structure, iter(leaves))


def map_arrays(change: Callable[[Any], Any], value: Any) -> Any:
    """The same tree with other arrays; numbers and parameters stay."""
    leaves, structure = flatten(value)
    return unflatten(structure, [change(leaf) if is_array(leaf) else leaf for leaf in leaves])


def signature(leaves: Sequence[Any]) -> tuple[Any, ...]:
    """What else programs may depend on: shape and dtype of each array, which parameters."""
    return tuple(
        (tuple(leaf.shape), str(leaf.dtype), str(getattr(leaf, "device", "")))
        if is_array(leaf)
        else None
        if isinstance(leaf, float)
        else id(leaf)
        for leaf in leaves
    )


def alike(a: Any, b: Any) -> bool:
    """Whether two trees hold the very same arrays and parameters, and equal numbers."""
    if a is b:
        return True
    (first, one), (second, other) = flatten(a), flatten(b)
    return one == other and all(
        x is y or (isinstance(x, float) and x == y) for x, y in zip(first, second, strict=True)
    )


def is_array(value: Any) -> bool:
    """Whether a leaf is an array of some framework."""
    return hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, type)


def is_parameters(value: Any) -> bool:
    """Whether a leaf is a parameter tree: a network, or a part of one."""
    return isinstance(value, Node | BaseRoot) or hasattr(type(value), "named_parameters")


def no_data(structure: Structure) -> Any:
    """What in a structure is neither data nor a plain value, so that it may change unseen: a
    function, an object with a state of its own. None where there is nothing of the kind."""
    if structure.kind == "fixed":
        value = structure.names[1]
        return None if _is_plain(value) else value
    return next((odd for odd in map(no_data, structure.children) if odd is not None), None)


def unseen(structure: Structure) -> str | None:
    """Why a program must not be kept with what is fixed in a structure (`no_data`), as a sentence
    that is the same for each function of one definition; None where it may be."""
    odd = no_data(structure)
    if odd is None:
        return None
    return f"{getattr(odd, '__qualname__', None) or shown(odd)} is no data, and could change unseen"


def _is_plain(value: Any) -> bool:
    if value is None or isinstance(value, bool | int | float | str | bytes | Enum | type):
        return True
    if isinstance(value, tuple | frozenset):
        return all(map(_is_plain, value))
    if getattr(type(value), "is_structure", False):
        return True
    settings = getattr(type(value), "__dataclass_params__", None)
    return is_dataclass(value) and settings is not None and settings.frozen


def _take(value: Any, leaves: list[Any]) -> Structure:
    if value is None or isinstance(value, bool | int | str):
        return Structure("fixed", (type(value), value))
    if getattr(type(value), "is_structure", False):
        return _fixed(value)
    if isinstance(value, float):
        leaves.append(value)
        return _NUMBER
    if is_parameters(value):
        leaves.append(value)
        return _PARAMETERS
    if is_array(value):
        leaves.append(value)
        return _ARRAY
    if isinstance(value, tuple):
        names = getattr(value, "_fields", ())
        return Structure(type(value), names, tuple(_take(child, leaves) for child in value))
    if isinstance(value, list):
        return Structure(list, (), tuple(_take(child, leaves) for child in value))
    if isinstance(value, Mapping):
        children = tuple(_take(child, leaves) for child in value.values())
        return Structure(dict, tuple(value), children)
    if is_dataclass(value) and not isinstance(value, type):
        names, children = [], []
        for field in fields(value):
            child = getattr(value, field.name)
            fixed = field.metadata.get("static", False)
            names.append(field.name)
            children.append(_fixed(child) if fixed else _take(child, leaves))
        return Structure(type(value), tuple(names), tuple(children))
    return _fixed(value)


def _fixed(value: Any) -> Structure:
    try:
        hash(value)
    except TypeError:
        value = _Same(value)
    return Structure("fixed", (type(value), value))


def _build(structure: Structure, leaves: Any) -> Any:
    kind = structure.kind
    if kind == "fixed":
        value = structure.names[1]
        return value.value if isinstance(value, _Same) else value
    if kind in (ARRAY, NUMBER, PARAMETERS):
        return next(leaves)
    children = [_build(child, leaves) for child in structure.children]
    if kind is list:
        return children
    if kind is dict:
        return dict(zip(structure.names, children, strict=True))
    if issubclass(kind, tuple):
        return kind(*children) if structure.names else tuple(children)
    # Not by its constructor: a frozen value was checked when it was made. Fields are all it keeps.
    made = object.__new__(kind)
    for name, child in zip(structure.names, children, strict=True):
        object.__setattr__(made, name, child)
    return made
