"""Differences to layers beyond LoRA: the kinds of LyCORIS (Yeh et al. 2023), and DoRA.

Each is told by the difference to a layer's weight. Where `scale` is a number the layer runs once,
with that difference added to its weight; where it is an array `(rows,)` the layer runs again on the
difference, weighed for each row. So a scale between 0 and 1 lies on the straight line between the
layer as it was and as the file wants it, for every kind alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from underdraw.backends.contract import Array, Operations
from underdraw.backends.deltas import Arrays, Delta, Difference, merged, operate
from underdraw.backends.layout import Leaf
from underdraw.backends.scales import (
    as_float,
    by_row,
    check_scale,
    count_of,
    is_number,
    scale_on_rows,
    scaled,
    silenced,
)
from underdraw.errors import ControlError

SMALLEST = 2.0**-23
"""Added to lengths of weights, so that rows of zeros stay finite."""


@dataclass(frozen=True, eq=False)
class OfWeight(Delta):
    """Base of the kinds below: `of` gives the difference at a scale of 1."""

    def __post_init__(self) -> None:
        as_float(self)

    def of(self, nn: Operations, leaf: Leaf, weight: Array) -> Array:
        """The difference to `weight`, both float32 and of the leaf's shape."""
        raise NotImplementedError(f"{type(self).__name__} must say what it adds to a weight")

    def fits(self, leaf: Leaf) -> str | None:
        """What does not fit a linear layer or a convolution, such as "factors ..."; None: all
        does."""
        raise NotImplementedError(f"{type(self).__name__} must say which leaves it fits")

    @property
    def in_weight(self) -> bool:
        return not by_row(self._scale)

    @property
    def count(self) -> int | None:
        return count_of(self._scale)

    def check(self, leaf: Leaf) -> None:
        check_scale(self._scale)
        kind = type(self).__name__
        if leaf.kind not in ("linear", "conv2d"):
            raise ControlError(f"{kind} fits linear and conv2d, not {leaf.kind} {leaf.shape}")
        wrong = self.fits(leaf)
        if wrong is not None:
            raise ControlError(f"{kind} has {wrong}; the {leaf.kind} has weight {leaf.shape}")

    def difference(self, nn: Operations, leaf: Leaf, weight: Array) -> Difference:
        self.alike()
        scale = self._scale
        factor = scale if is_number(scale) else nn.float32(scale.reshape(-1)[0])
        return Difference(self.of(nn, leaf, nn.float32(weight)) * factor)

    def added_to(self, nn: Operations, leaf: Leaf, layer: Any, x: Array, y: Array) -> Array | None:
        if self.in_weight:
            return None
        whole = nn.cast(self.of(nn, leaf, nn.float32(layer.weight)), x)
        more = operate(nn, replace(leaf, bias=False), Arrays(whole), x)
        return silenced(nn, self._scale, scaled(nn, self._scale, more))

    def rows(self, nn: Operations, start: int, stop: int, of: int) -> Any:
        scale = scale_on_rows(nn, self, self._like, start, stop, of)
        return replace(self, scale=scale)  # type: ignore[call-arg]

    @property
    def _scale(self) -> Any:
        return vars(self)["scale"]

    @property
    def _like(self) -> Array:
        """An array whose dtype factors per row are made in."""
        return next(value for value in vars(self).values() if hasattr(value, "dtype"))


@dataclass(frozen=True, eq=False)
class Factors:
    """A matrix `(out, in, ...)` as a product: `up (out, rank)`, `down (rank, in or in * kernel)`,
    and `mid (rank, rank, kernel, kernel)` where a kernel is apart (a Tucker decomposition)."""

    up: Array
    down: Array
    mid: Array | None = None

    @property
    def sizes(self) -> tuple[int, int]:
        """Rows and columns; those of `mid` are not among the columns."""
        return self.up.shape[0], self.down.shape[1]

    @property
    def consistent(self) -> bool:
        """Whether the factors fit each other."""
        inner = (self.up.shape[1], self.down.shape[0])
        apart = self.mid is not None
        return tuple(self.mid.shape[:2]) == inner if apart else inner[0] == inner[1]  # type: ignore[union-attr]

    def whole(self, nn: Operations) -> Array:
        """The matrix, float32."""
        up, down = nn.float32(self.up), nn.float32(self.down)
        return merged(nn, up, down, None if self.mid is None else nn.float32(self.mid))

    def told(self) -> str:
        """Shapes, for an error."""
        parts = (self.up, self.down, *(() if self.mid is None else (self.mid,)))
        return " and ".join(str(tuple(part.shape)) for part in parts)


@dataclass(frozen=True, eq=False)
class Hadamard(OfWeight):
    """LoHa (Hyeon-Woo et al. 2022): the product of two low-rank matrices, element by element."""

    first: Factors
    second: Factors
    scale: Any = 1.0

    def fits(self, leaf: Leaf) -> str | None:
        for factors in (self.first, self.second):
            kernel = () if factors.mid is None else tuple(factors.mid.shape[2:])
            apart = factors.mid is not None
            columns = leaf.shape[1] if apart else _columns(leaf)
            right = factors.consistent and factors.sizes == (leaf.shape[0], columns)
            if not right or (apart and kernel != leaf.shape[2:]):
                return f"factors {self.first.told()}, {self.second.told()}"
        return None

    def of(self, nn: Operations, leaf: Leaf, weight: Array) -> Array:
        first, second = (part.whole(nn).reshape(leaf.shape) for part in (self.first, self.second))
        return first * second

    @property
    def _like(self) -> Array:
        return self.first.up


@dataclass(frozen=True, eq=False)
class Kronecker(OfWeight):
    """LoKr: the Kronecker product of two matrices, of which the second has the kernel of a
    convolution. Each is whole, `(rows, columns, ...)`, or `Factors`."""

    first: Array | Factors
    second: Array | Factors
    scale: Any = 1.0

    def fits(self, leaf: Leaf) -> str | None:
        for part in (self.first, self.second):
            if isinstance(part, Factors) and not part.consistent:
                return f"factors {part.told()}"
        (rows, columns), (more_rows, rest) = self._sizes(self.first), self._sizes(self.second)
        kernel = 1
        if isinstance(self.second, Factors) and self.second.mid is not None:
            kernel = _columns(leaf) // leaf.shape[1]
            if tuple(self.second.mid.shape[2:]) != leaf.shape[2:]:
                return f"factors {self.second.told()}"
        if (rows * more_rows, columns * rest * kernel) != (leaf.shape[0], _columns(leaf)):
            return f"a product {rows} x {columns} by {more_rows} x {rest}"
        return None

    def of(self, nn: Operations, leaf: Leaf, weight: Array) -> Array:
        first, second = self._whole(nn, self.first), self._whole(nn, self.second)
        first = first.reshape(first.shape[0], -1)
        inner = leaf.shape[1] // first.shape[1]
        second = second.reshape(1, second.shape[0], 1, inner, -1)
        product = first.reshape(first.shape[0], 1, first.shape[1], 1, 1) * second
        return product.reshape(leaf.shape)

    @staticmethod
    def _sizes(part: Array | Factors) -> tuple[int, int]:
        if isinstance(part, Factors):
            return part.sizes
        columns = 1
        for size in part.shape[1:]:
            columns *= size
        return part.shape[0], columns

    @staticmethod
    def _whole(nn: Operations, part: Array | Factors) -> Array:
        return part.whole(nn) if isinstance(part, Factors) else nn.float32(part)

    @property
    def _like(self) -> Array:
        return self.first.up if isinstance(self.first, Factors) else self.first


@dataclass(frozen=True, eq=False)
class OfInput(OfWeight):
    """The part of GLoRA (Chavan et al. 2023) that acts on the input: `W a2' a1'`, as if `x + up
    (down x)` were given to the layer. `down (rank, in)`, `up (in, rank)`."""

    down: Array
    up: Array
    scale: Any = 1.0

    def fits(self, leaf: Leaf) -> str | None:
        down, up = tuple(self.down.shape), tuple(self.up.shape)
        if down[1:] == leaf.shape[1:2] and up == down[::-1]:
            return None
        return f"down {down}, up {up}"

    def of(self, nn: Operations, leaf: Leaf, weight: Array) -> Array:
        across = nn.permute(weight.reshape(*leaf.shape[:2], -1), (0, 2, 1))
        across = nn.matmul(nn.matmul(across, nn.float32(self.up)), nn.float32(self.down))
        return nn.permute(across, (0, 2, 1)).reshape(leaf.shape)


@dataclass(frozen=True, eq=False)
class Rescaled(OfWeight):
    """IA3 (Liu et al. 2022): each channel of the output, or of the input, is multiplied by 1 +
    `factors (channels,)`."""

    factors: Array
    on_input: bool = False
    scale: Any = 1.0

    def fits(self, leaf: Leaf) -> str | None:
        shape = tuple(self.factors.shape)
        if shape == leaf.shape[1:2] if self.on_input else shape == leaf.shape[:1]:
            return None
        return f"factors {shape} on its {'input' if self.on_input else 'output'}"

    def of(self, nn: Operations, leaf: Leaf, weight: Array) -> Array:
        return weight * _along(nn, self.factors, leaf, 1 if self.on_input else 0)


@dataclass(frozen=True, eq=False)
class Rotated(OfWeight):
    """OFT (Qiu et al. 2023) and BOFT (Liu et al. 2024): channels of the output, in blocks, are
    turned by orthogonal matrices `blocks (stages, count, size, size)`, then multiplied by `factors
    (out,)`. With `butterfly` the channels are mixed between stages.

    A scale between 0 and 1 brings each matrix nearer to the identity, as LyCORIS does, so stages
    are not on the straight line between their ends.
    """

    blocks: Array
    factors: Array | None = None
    butterfly: bool = False
    scale: Any = 1.0

    def fits(self, leaf: Leaf) -> str | None:
        stages, count, size, other = self.blocks.shape
        span = (size // 2) << stages  # channels that the last stage mixes
        sound = count * size == leaf.shape[0] and size == other
        if self.butterfly:
            sound = sound and size % 2 == 0 and leaf.shape[0] % span == 0
        if self.factors is not None:
            sound = sound and tuple(self.factors.shape) == leaf.shape[:1]
        return None if sound else f"blocks {tuple(self.blocks.shape)}"

    def difference(self, nn: Operations, leaf: Leaf, weight: Array) -> Difference:
        self.alike()
        scale = self.scale if is_number(self.scale) else nn.float32(self.scale.reshape(-1)[0])
        channels = nn.float32(weight).reshape(leaf.shape[0], -1)
        turned = self._turned(nn, channels[None], scale)[0]
        return Difference((turned - channels).reshape(leaf.shape))

    def added_to(self, nn: Operations, leaf: Leaf, layer: Any, x: Array, y: Array) -> Array | None:
        if self.in_weight:
            return None
        plain = nn.float32(y)
        if leaf.bias:
            ones = (1,) * (len(y.shape) - 2)
            bias = nn.float32(layer.bias)
            plain = plain - (
                bias.reshape(1, -1, 1, 1) if leaf.kind == "conv2d" else bias.reshape(1, *ones, -1)
            )
        rows = self.scale.shape[0]
        if plain.shape[0] == 1:
            plain = nn.expand(plain, (rows, *plain.shape[1:]))
        if leaf.kind == "conv2d":
            channels = plain.reshape(*plain.shape[:2], -1)
        else:
            channels = nn.permute(plain.reshape(plain.shape[0], -1, plain.shape[-1]), (0, 2, 1))
        factors = nn.float32(self.scale).reshape(-1, 1, 1)
        more = self._turned(nn, channels, factors) - channels
        if leaf.kind != "conv2d":
            more = nn.permute(more, (0, 2, 1))
        return silenced(nn, self.scale, more.reshape(plain.shape))

    def _turned(self, nn: Operations, channels: Array, scale: Any) -> Array:
        """`channels (rows, out, any)`, turned; `scale` is a number or `(rows, 1, 1)`."""
        rows, out, _ = channels.shape
        stages, count, size, _ = self.blocks.shape
        for stage in range(stages):
            step = (size // 2) << stage
            before = self._mixed(nn, channels, 2, step)
            blocks = nn.float32(self.blocks[stage])[None]
            inside = before.reshape(rows, count, size, -1)
            after = nn.matmul(blocks, inside).reshape(rows, out, -1)
            after = before + (after - before) * scale
            channels = self._mixed(nn, after, step, 2)
        if self.factors is None:
            return channels
        factors = nn.float32(self.factors).reshape(1, -1, 1)
        return channels * (1 + (factors - 1) * scale)

    def _mixed(self, nn: Operations, channels: Array, groups: int, step: int) -> Array:
        """Channels `(groups, step)` of each part in the order `(step, groups)`."""
        if not self.butterfly:
            return channels
        rows, out, rest = channels.shape
        parts = channels.reshape(rows * out // (groups * step), groups, step, rest)
        return nn.permute(parts, (0, 2, 1, 3)).reshape(rows, out, rest)


@dataclass(frozen=True, eq=False)
class Decomposed(OfWeight):
    """DoRA (Liu et al. 2024, equation 5): the weight plus `inner` keeps its direction, and
    `magnitude` is its length: `(out,)` for each channel of the output, or `(in,)` of the input."""

    inner: Delta
    magnitude: Array
    on_input: bool = False
    scale: Any = 1.0

    def fits(self, leaf: Leaf) -> str | None:
        self.inner.check(leaf)
        axis = 1 if self.on_input else 0
        shape = tuple(self.magnitude.shape)
        return None if shape == leaf.shape[axis : axis + 1] else f"magnitude {shape}"

    def of(self, nn: Operations, leaf: Leaf, weight: Array) -> Array:
        more, _ = self.inner.difference(nn, leaf, weight)
        new = weight + more
        if self.on_input:
            first = (1, 0, *range(2, len(leaf.shape)))
            lengths = nn.norm(nn.permute(new, first).reshape(leaf.shape[1], -1))
        else:
            lengths = nn.norm(new.reshape(leaf.shape[0], -1))
        ratio = nn.float32(self.magnitude) / (lengths.reshape(-1) + SMALLEST)
        return new * _along(nn, ratio, leaf, 1 if self.on_input else 0) - weight

    @property
    def _like(self) -> Array:
        return self.magnitude


def _columns(leaf: Leaf) -> int:
    """Numbers in one row of the weight."""
    columns = 1
    for size in leaf.shape[1:]:
        columns *= size
    return columns


def _along(nn: Operations, values: Array, leaf: Leaf, axis: int) -> Array:
    """`values` along one axis of the leaf's weight."""
    shape = [1] * len(leaf.shape)
    shape[axis] = -1
    return nn.float32(values).reshape(*shape)
