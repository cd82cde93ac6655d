"""A node laid over a parameter tree: the same paths, the same operations, deltas at some leaves.

A program gets `Adapted(p, deltas)` as its `p` and is not changed for it. What lies under no delta
is the tree's own, so its bits and its speed stay; nothing is ever written into the tree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from underdraw.backends.contract import Array
from underdraw.backends.deltas import Arrays, Delta, Deltas, naming, operate
from underdraw.backends.layout import Leaf
from underdraw.errors import ControlError


@dataclass(frozen=True, eq=False, repr=False)
class Adapted:
    """A node with deltas at leaves under it, by their dotted path from here.

    Children come by attribute, number or iteration as from the node. A name of its own would hide a
    parameter of this name, so it has none: what can be done with deltas is in `backends.deltas`.
    """

    _node: Any
    _deltas: Mapping[str, Any]
    """Deltas by dotted path; kept as mappings of mappings, level by level."""
    _path: str = ""
    """Where the node is in the network, for errors."""

    def __post_init__(self) -> None:
        if any("." in name for name in self._deltas):
            object.__setattr__(self, "_deltas", _by_level(self._deltas))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._over(name, getattr(self._node, name))

    def __getitem__(self, index: int) -> Any:
        return self._over(str(index), self._node[index])

    def __len__(self) -> int:
        return len(self._node)

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"Adapted({self._node!r}, {sorted(self._deltas)})"

    def _over(self, name: str, child: Any) -> Any:
        under = self._deltas.get(name)
        if under is None:
            return child
        path = f"{self._path}.{name}" if self._path else name
        if isinstance(under, Mapping):
            return Adapted(child, under, path) if under else child
        return AdaptedLeaf(child, under, path)


class AdaptedLeaf:
    """A layer, or a raw parameter, with its delta. The operations of a backend call its methods
    where they meet one; what else is read (`weight`, `bias`, settings) is the layer's own."""

    def __init__(self, layer: Any, delta: Delta, path: str) -> None:
        self._layer, self._delta, self._path = layer, delta, path

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._layer, name)

    def with_layer(self, layer: Any) -> AdaptedLeaf:
        """The same delta over another layer."""
        return AdaptedLeaf(layer, self._delta, self._path)

    def without_delta(self) -> Any:
        """The layer, or raw parameter, as it is in the network."""
        return self._layer

    def linear(self, nn: Any, x: Array, width: int, bias: bool) -> Array:
        """As the operation."""
        return self._run(nn, Leaf("linear", (width, x.shape[-1]), bias), x)

    def conv2d(
        self,
        nn: Any,
        x: Array,
        width: int,
        kernel: int,
        stride: int,
        padding: int | None,
        bias: bool,
        groups: int,
    ) -> Array:
        """As the operation."""
        shape = (width, x.shape[1] // groups, kernel, kernel)
        side = kernel // 2 if padding is None else padding
        return self._run(nn, Leaf("conv2d", shape, bias, stride, side, groups), x)

    def group_norm(self, nn: Any, x: Array, groups: int, eps: float) -> Array:
        """As the operation."""
        return self._run(nn, Leaf("group_norm", (x.shape[1],), groups=groups, eps=eps), x)

    def layer_norm(self, nn: Any, x: Array, eps: float) -> Array:
        """As the operation."""
        return self._run(nn, Leaf("layer_norm", (x.shape[-1],), eps=eps), x)

    def embedding(self, nn: Any, ids: Array, count: int, width: int) -> Array:
        """As the operation."""
        return self._run(nn, Leaf("embedding", (count, width)), ids)

    def parameter(self, nn: Any, shape: tuple[int, ...]) -> Array:
        """As the operation."""
        leaf, value = Leaf("parameter", tuple(shape)), self._layer
        with naming(self._path):
            for delta in self._checked(leaf):
                if delta.replaces:
                    value = delta.replaced(nn, leaf, value)
            return self._sum(nn, leaf, value, value, value)

    def _run(self, nn: Any, leaf: Leaf, x: Array) -> Array:
        layer = self._layer
        with naming(self._path):
            parts = self._checked(leaf)
            for delta in parts:
                if delta.replaces:
                    layer = _with_weight(leaf, layer, delta.replaced(nn, leaf, layer.weight))
            acting = layer
            for delta in parts:  # each sees the layer's own weight, whatever the others add
                if delta.in_weight:
                    more, _ = delta.difference(nn, leaf, layer.weight)
                    weight = acting.weight + nn.cast(more, layer.weight)
                    acting = _with_weight(leaf, acting, weight)
            return self._sum(nn, leaf, layer, x, operate(nn, leaf, acting, x))

    def _checked(self, leaf: Leaf) -> tuple[Delta, ...]:
        self._delta.check(leaf)
        return self._delta.parts

    def _sum(self, nn: Any, leaf: Leaf, layer: Any, x: Array, y: Array) -> Array:
        plain = y
        for delta in self._delta.parts:
            extra = delta.added_to(nn, leaf, layer, x, plain)
            if extra is not None:
                y = y + nn.cast(extra, plain)
        return y


def _with_weight(leaf: Leaf, layer: Any, weight: Array) -> Arrays:
    return Arrays(weight, layer.bias if leaf.bias and leaf.kind != "embedding" else None)


def _by_level(deltas: Mapping[str, Delta]) -> dict[str, Any]:
    root: dict[str, Any] = {}
    for path, delta in deltas.items():
        *parents, last = path.split(".")
        here: Any = root
        for name in parents:
            here = here.setdefault(name, {})
            if not isinstance(here, dict):
                break
        if not isinstance(here, dict) or last in here:
            raise ControlError(f"delta at '{path}': there is another one above or below it")
        here[last] = delta
    return root


NO_DELTAS: Deltas = MappingProxyType({})


def adapted(node: Any, deltas: Deltas) -> Any:
    """The node with deltas laid over it; the node itself where there are none."""
    return Adapted(node, deltas) if deltas else node
