"""What a checkpoint of a network looks like: names of leaves and shapes of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

Kind = Literal["linear", "conv2d", "group_norm", "layer_norm", "embedding", "parameter"]


@dataclass(frozen=True)
class Leaf:
    """One layer, or one raw parameter, and what is needed to create it."""

    kind: Kind
    shape: tuple[int, ...]
    """Shape of `weight`, or of the raw parameter."""
    bias: bool = True
    stride: int = 1
    padding: int = 0
    groups: int = 1
    eps: float = 1e-5
    start: float | None = None
    """What a new raw parameter, or weight and bias of a new layer, are filled with; None draws them
    as PyTorch's layers do."""

    def tensors(self, path: str) -> dict[str, tuple[int, ...]]:
        """Full names and shapes of the tensors of this leaf."""
        if self.kind == "parameter":
            return {path: self.shape}
        named = {f"{path}.weight": self.shape}
        if self.bias and self.kind != "embedding":
            named[f"{path}.bias"] = self.shape[:1]
        return named


@dataclass(frozen=True)
class Layout:
    """Leaves by path, in the order in which the program meets them."""

    leaves: Mapping[str, Leaf]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor name with its shape, as in a published checkpoint."""
        named: dict[str, tuple[int, ...]] = {}
        for path, leaf in self.leaves.items():
            named.update(leaf.tensors(path))
        return named

    def paths_ending(self, suffix: str) -> tuple[str, ...]:
        """Paths of the leaves whose last part is `suffix`."""
        return tuple(path for path in self.leaves if path.endswith(f".{suffix}"))

    def starting(self, start: float, *ends: str) -> Layout:
        """The same, where new layers of these paths, or below them, are filled with a number."""

        def under(path: str) -> bool:
            return any(path == end or path.startswith(f"{end}.") for end in ends)

        leaves = {
            path: replace(leaf, start=start) if under(path) else leaf
            for path, leaf in self.leaves.items()
        }
        return Layout(MappingProxyType(leaves))

    def __or__(self, other: Layout) -> Layout:
        """The union: a network with several entries is the union of its traces."""
        return Layout(MappingProxyType({**self.leaves, **other.leaves}))
