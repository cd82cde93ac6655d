"""A backend that computes nothing but shapes: it writes down the layout of a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from math import prod
from types import MappingProxyType
from typing import Any

from underdraw.backends.adapted import AdaptedLeaf
from underdraw.backends.layout import Layout, Leaf
from underdraw.errors import InputError

MOST_LEAVES = 20_000
"""Layers of a network; the UNet of Stable Diffusion XL has 1,700. A config is a few lines, and its
numbers multiply."""
MOST_NUMBERS = 1 << 34
"""Of one layer: 64 GB in float32."""


class Shape:
    """An array without numbers."""

    dtype = None

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def _broadcast(self, other: Any) -> Shape:
        theirs = getattr(other, "shape", ())
        sizes = []
        for a, b in zip_longest(self.shape[::-1], theirs[::-1], fillvalue=1):
            if a != b and 1 not in (a, b):
                raise ValueError(f"shapes {self.shape} and {theirs} do not broadcast")
            sizes.append(max(a, b))
        return Shape(*sizes[::-1])

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _broadcast
    __truediv__ = __rtruediv__ = __pow__ = _broadcast

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _broadcast  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]

    def __neg__(self) -> Shape:
        return self

    def reshape(self, *shape: int) -> Shape:
        if -1 in shape:
            shape = tuple(-prod(self.shape) // prod(shape) if s == -1 else s for s in shape)
        if prod(shape) != prod(self.shape):
            raise ValueError(f"cannot reshape {self.shape} to {shape}")
        return Shape(*shape)

    def __getitem__(self, index: Any) -> Shape:
        sizes, axis = [], 0
        index = index if isinstance(index, tuple) else (index,)
        for item in index:
            if item is None:
                sizes.append(1)
                continue
            if isinstance(item, slice):
                sizes.append(len(range(*item.indices(self.shape[axis]))))
            axis += 1
        return Shape(*sizes, *self.shape[axis:])


class Path:
    """A parameter node that knows nothing but its name."""

    def __init__(self, name: str = "") -> None:
        self._name = name

    def __getattr__(self, name: str) -> Path:
        return Path(f"{self._name}.{name}" if self._name else name)

    def __getitem__(self, index: int) -> Path:
        return getattr(self, str(index))


@dataclass(frozen=True)
class Shapes:
    """`Operations` on `Shape`s which records the leaves it is asked for. Deltas over a layer change
    no shape, so the layer is what is read."""

    leaves: dict[str, Leaf]
    name: str = "shapes"

    def _leaf(self, p: Path | AdaptedLeaf, leaf: Leaf) -> None:
        if isinstance(p, AdaptedLeaf):
            p = p.without_delta()
        if len(self.leaves) >= MOST_LEAVES:
            raise InputError(f"the config makes a network of over {MOST_LEAVES:,} layers")
        if prod(leaf.shape) >= MOST_NUMBERS:
            raise InputError(
                f"the config makes '{p._name}' of shape {list(leaf.shape)!r:.80}; allowed: below "
                f"{MOST_NUMBERS:,} numbers"
            )
        known = self.leaves.setdefault(p._name, leaf)
        if known != leaf:
            raise ValueError(f"'{p._name}' is used as {known} and as {leaf}")

    def linear(self, p: Path, x: Shape, width: int, bias: bool = True) -> Shape:
        self._leaf(p, Leaf("linear", (width, x.shape[-1]), bias))
        return Shape(*x.shape[:-1], width)

    def conv2d(
        self,
        p: Path,
        x: Shape,
        width: int,
        kernel: int,
        stride: int = 1,
        padding: int | None = None,
        bias: bool = True,
        groups: int = 1,
    ) -> Shape:
        padding = kernel // 2 if padding is None else padding
        batch, channels, *sizes = x.shape
        weight = (width, channels // groups, kernel, kernel)
        self._leaf(p, Leaf("conv2d", weight, bias, stride, padding, groups))
        return Shape(batch, width, *((s + 2 * padding - kernel) // stride + 1 for s in sizes))

    def group_norm(self, p: Path, x: Shape, groups: int, eps: float = 1e-5) -> Shape:
        if x.shape[1] % groups:
            raise ValueError(
                f"'{p._name}': {x.shape[1]} channels do not split into {groups} groups"
            )
        self._leaf(p, Leaf("group_norm", (x.shape[1],), groups=groups, eps=eps))
        return x

    def layer_norm(self, p: Path, x: Shape, eps: float = 1e-5) -> Shape:
        self._leaf(p, Leaf("layer_norm", (x.shape[-1],), eps=eps))
        return x

    def embedding(self, p: Path, ids: Shape, count: int, width: int) -> Shape:
        self._leaf(p, Leaf("embedding", (count, width)))
        return Shape(*ids.shape, width)

    def parameter(
        self, p: Path, name: str, shape: tuple[int, ...], start: float | None = None
    ) -> Shape:
        self._leaf(getattr(p, name), Leaf("parameter", tuple(shape), start=start))
        return Shape(*shape)

    def _same(self, x: Shape) -> Shape:
        return x

    silu = gelu = quick_gelu = tanh = sin = cos = exp = softmax = float32 = _same

    def clip(self, x: Shape, low: Any, high: Any) -> Shape:
        return x

    def where(self, condition: Shape, x: Any, y: Any) -> Shape:
        return condition + x + y

    def mean(self, x: Shape, axes: tuple[int, ...], keepdims: bool = True) -> Shape:
        gone = {a % len(x.shape) for a in axes}
        kept = [1 if i in gone else s for i, s in enumerate(x.shape) if keepdims or i not in gone]
        return Shape(*kept)

    std = mean

    def norm(self, x: Shape, axis: int = -1) -> Shape:
        return self.mean(x, (axis,))

    def quantile_abs(self, x: Shape, q: float) -> Shape:
        return Shape(x.shape[0])

    def argmax(self, x: Shape, axis: int) -> Shape:
        return self.mean(x, (axis,), keepdims=False)

    def matmul(self, a: Shape, b: Shape) -> Shape:
        lead = Shape(*a.shape[:-2]) + Shape(*b.shape[:-2])
        return Shape(*lead.shape, a.shape[-2], b.shape[-1])

    def attention(self, q: Shape, k: Shape, v: Shape, mask: Shape | None = None) -> Shape:
        return Shape(*q.shape[:-1], v.shape[-1])

    def permute(self, x: Shape, axes: Sequence[int]) -> Shape:
        return Shape(*(x.shape[a] for a in axes))

    def tokens(self, x: Shape) -> Shape:
        batch, channels, height, width = x.shape
        return Shape(batch, height * width, channels)

    def image(self, x: Shape, like: Shape) -> Shape:
        return Shape(x.shape[0], x.shape[2], *like.shape[2:])

    def concat(self, xs: Sequence[Shape], axis: int) -> Shape:
        sizes = list(xs[0].shape)
        sizes[axis] = sum(x.shape[axis] for x in xs)
        return Shape(*sizes)

    def pad(self, x: Shape, bottom: int, right: int) -> Shape:
        return Shape(*x.shape[:2], x.shape[2] + bottom, x.shape[3] + right)

    def upsample(self, x: Shape, height: int, width: int) -> Shape:
        return Shape(*x.shape[:2], height, width)

    def gather_rows(self, x: Shape, index: Shape) -> Shape:
        return Shape(x.shape[0], *x.shape[2:])

    def expand(self, x: Shape, shape: Sequence[int]) -> Shape:
        return Shape(*shape)

    def arange(self, count: int, like: Shape) -> Shape:
        return Shape(count)

    def causal_mask(self, count: int, like: Shape) -> Shape:
        return Shape(count, count)

    def cast(self, x: Shape, like: Shape) -> Shape:
        return x


def trace(program: Callable[[Shapes, Path], Any]) -> Layout:
    """The layout of `program(nn, p)`: every leaf it asks for, in order."""
    leaves: dict[str, Leaf] = {}
    program(Shapes(leaves), Path())
    return Layout(MappingProxyType(leaves))
