"""The parameter tree of backends that have no module system of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import numpy as np

from underdraw import absent
from underdraw.backends.layout import Layout


class Node:
    """A node of a parameter tree: children by attribute (`p.conv1`) or by number (`p.resnets[0]`).

    All state lives in one slot, so that a parameter may have any name, `items` and `copy` included.
    """

    __slots__ = ("_",)

    def __init__(self, children: Mapping[str, Any]) -> None:
        self._ = dict(children)

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_"):
            return object.__getattribute__(self, name)
        try:
            return object.__getattribute__(self, "_")[name]
        except KeyError:
            raise AttributeError(
                f"no parameter '{name}' here; there are {sorted(self._)}"
            ) from None

    def __getitem__(self, index: int) -> Any:
        return self._[str(index)]

    def __len__(self) -> int:
        return len(self._)

    def __repr__(self) -> str:
        return f"Node({', '.join(self._)})"


class BaseRoot:
    """The root of a model on such a backend: its own attributes first, then its tree's children."""

    config: Any
    _tree: Node

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return getattr(self._tree, name)
        except AttributeError as error:
            told = absent.method(type(self).__name__, name, dir(type(self)))
            raise AttributeError(f"{told}; {error}") from None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)


def at(node: Any, path: str) -> Any:
    """The node or tensor at a dotted path."""
    for name in path.split("."):
        node = getattr(node, name)
    return node


def grow(tensors: Mapping[str, Any]) -> Node:
    """A tree from dotted names."""
    root: dict[str, Any] = {}
    for name, value in tensors.items():
        *parents, last = name.split(".")
        here = root
        for part in parents:
            here = here.setdefault(part, {})
        here[last] = value

    def build(level: dict[str, Any]) -> Node:
        return Node({k: build(v) if isinstance(v, dict) else v for k, v in level.items()})

    return build(root)


def walk(node: Node, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and tensors, the inverse of `grow`."""
    for name, value in node._.items():
        if isinstance(value, Node):
            yield from walk(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def initial_values(layout: Layout, seed: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """Names and float32 values of new parameters, distributed as PyTorch's own layers draw them.

    One tensor at a time, from numpy's generator: the same values on every backend.
    """
    random = np.random.default_rng(seed)
    for path, leaf in layout.leaves.items():
        for name, shape in leaf.tensors(path).items():
            if leaf.start is not None:
                value = np.full(shape, leaf.start)
            elif leaf.kind in ("linear", "conv2d"):
                bound = prod(leaf.shape[1:]) ** -0.5
                value = random.uniform(-bound, bound, shape)
            elif leaf.kind in ("group_norm", "layer_norm"):
                value = np.full(shape, float(name.endswith(".weight")))
            else:
                value = random.standard_normal(shape)
            yield name, value.astype(np.float32)
