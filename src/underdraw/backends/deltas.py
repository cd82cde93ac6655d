"""What can be laid over a layer: low-rank and full differences, and the contract for other kinds.

A delta is a frozen dataclass with arrays as fields. `backends.adapted` lays it over a leaf of a
parameter tree; this file knows nothing of trees.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, ClassVar, NamedTuple

from underdraw.backends.contract import Array, Operations
from underdraw.backends.layout import Layout, Leaf
from underdraw.backends.scales import (
    as_float,
    by_row,
    cast_to,
    check_scale,
    count_of,
    is_number,
    padded,
    scale_on_rows,
    scaled,
    silenced,
)
from underdraw.errors import ControlError


@dataclass(frozen=True, eq=False)
class Arrays:
    """A leaf that is part of no tree: the operations take it where they take a layer."""

    weight: Array
    bias: Array | None = None


def operate(nn: Operations, leaf: Leaf, p: Any, x: Array) -> Array:
    """The operation that `leaf` describes, on the layer or the arrays `p`."""
    match leaf.kind:
        case "linear":
            return nn.linear(p, x, leaf.shape[0], leaf.bias)
        case "conv2d":
            width, kernel = leaf.shape[0], leaf.shape[2]
            return nn.conv2d(p, x, width, kernel, leaf.stride, leaf.padding, leaf.bias, leaf.groups)
        case "group_norm":
            return nn.group_norm(p, x, leaf.groups, leaf.eps)
        case "layer_norm":
            return nn.layer_norm(p, x, leaf.eps)
        case "embedding":
            return nn.embedding(p, x, *leaf.shape)
    raise AssertionError(leaf.kind)


class Difference(NamedTuple):
    """What a delta adds to a layer's parameters; None adds nothing."""

    weight: Array | None
    bias: Array | None = None


class Delta:
    """The contract. A kind says in `check` what it fits and acts by `added`, by `replaced` or both.

    `leaf` describes the layer as it is used: kind, shape of the weight `(out, in)` or `(out, in /
    groups, kernel, kernel)`, bias, stride, padding, groups, eps. The errors of a kind name sizes;
    the path of the leaf is put before them by whoever knows it.
    """

    replaces: ClassVar[bool] = False
    """Whether the layer runs with the weight that `replaced` returns."""

    @property
    def in_weight(self) -> bool:
        """Whether the layer runs with `difference` added to its weight: for all rows alike that
        costs less than what `added` would do."""
        return False

    @property
    def parts(self) -> tuple[Delta, ...]:
        """The deltas that act one after another: itself, or those which it joins."""
        return (self,)

    @property
    def count(self) -> int | None:
        """Rows of the call it is for, where rows are changed differently; None: any number."""
        return None

    @property
    def by_row(self) -> bool:
        """Whether rows of the batch are changed differently. The rows must then be those of the
        call: what a loop computes for all its times at once must be computed for each row."""
        return self.count is not None

    def check(self, leaf: Leaf) -> None:
        """Raise a `ControlError` that names both shapes unless this delta fits the leaf."""
        raise NotImplementedError(f"{type(self).__name__} must say which leaves it fits")

    def replaced(self, nn: Operations, leaf: Leaf, weight: Array) -> Array:
        """What the layer, or a raw parameter, has in place of `weight`, for all rows alike."""
        return weight

    def added(self, nn: Operations, leaf: Leaf, x: Array) -> Array | None:
        """What is added to the output of the layer at the input `x`; None adds nothing."""
        return None

    def added_to(self, nn: Operations, leaf: Leaf, layer: Any, x: Array, y: Array) -> Array | None:
        """The same for kinds that need the layer itself, or its output `y` without any delta."""
        return self.added(nn, leaf, x)

    def difference(self, nn: Operations, leaf: Leaf, weight: Array) -> Difference:
        """What is added to `weight` and to the bias when the delta is merged into its layer,
        float32.

        Raises:
            ControlError: this kind cannot be merged, or changes rows differently.
        """
        raise ControlError(f"{type(self).__name__} cannot be merged into a weight")

    def weighed(self, factor: Any) -> Delta:
        """The same times a factor: a number, or an array `(rows,)`. Kinds have a field `scale`."""
        scale = vars(self)["scale"]
        return replace(self, scale=scale * factor)  # type: ignore[type-var]

    def alike(self) -> None:
        """Raise a `ControlError` where rows are changed differently, as no merged weight does."""
        if self.by_row:
            raise ControlError(
                f"{type(self).__name__} changes {self.count} rows differently; a weight into which "
                "it is merged is one for all rows"
            )

    def rows(self, nn: Operations, start: int, stop: int, of: int) -> Delta:
        """This delta on rows `start` to `stop` of a call of `of` rows; it leaves others alone.

        Raises:
            ControlError: this kind changes all rows alike.
        """
        raise ControlError(
            f"{type(self).__name__} changes all rows; it cannot change rows {start} to {stop} of "
            f"{of} alone"
        )


Deltas = Mapping[str, Delta]
"""Deltas by the dotted path of a leaf, such as `mid_block.attentions.0.proj_in`."""


@dataclass(frozen=True, eq=False)
class LowRank(Delta):
    """LoRA (Hu et al. 2021): `y + up(down(x)) * scale`, at linear layers and convolutions.

    - Linear: `down (rank, in)`, `up (out, rank)`.
    - Convolution: `down (rank, in / groups, kernel, kernel)` has the layer's stride and padding,
      `up (out, rank, 1, 1)`.
    - Convolution with `mid (rank, rank, kernel, kernel)`, which has stride and padding (a Tucker
      decomposition): `down (rank, in / groups, 1, 1)`, `up (out, rank, 1, 1)`.

    `scale` is a number, or an array `(rows,)` with a factor per row of the batch. Where all of
    `down`, `up` and `mid` have one more axis in front, of size rows, each row has its own.
    """

    down: Array
    up: Array
    scale: Any = 1.0
    mid: Array | None = None

    def __post_init__(self) -> None:
        as_float(self)

    @property
    def stacked(self) -> bool:
        """Whether each row has its own `down` and `up`."""
        return len(self.down.shape) in (3, 5)

    @property
    def count(self) -> int | None:
        return self.down.shape[0] if self.stacked else count_of(self.scale)

    def check(self, leaf: Leaf) -> None:
        if leaf.kind not in ("linear", "conv2d"):
            raise ControlError(f"LowRank fits linear and conv2d, not {leaf.kind} {leaf.shape}")
        check_scale(self.scale)
        down, up, mid = (() if a is None else tuple(a.shape) for a in self._arrays)
        lead = down[:1] if self.stacked else ()
        first, last = len(lead), len(lead) + 1
        rank, inner = up[last : last + 1], down[first : first + 1]
        ones = (1, 1) if leaf.kind == "conv2d" else ()
        fits = up == (*lead, leaf.shape[0], *rank, *ones)
        if self.mid is None:
            fits = fits and down == (*lead, *rank, *leaf.shape[1:])
        else:
            fits = fits and down == (*lead, *inner, leaf.shape[1], *ones)
            fits = fits and mid == (*lead, *rank, *inner, *leaf.shape[2:]) and bool(ones)
        if not fits:
            shapes = f"down {down}, up {up}" + ("" if self.mid is None else f", mid {mid}")
            raise ControlError(f"LowRank has {shapes}; the {leaf.kind} has weight {leaf.shape}")

    def added(self, nn: Operations, leaf: Leaf, x: Array) -> Array:
        down, up, mid = (cast_to(nn, a, x) for a in self._arrays)
        if self.stacked and x.shape[0] != down.shape[0]:
            if x.shape[0] != 1:
                raise ControlError(
                    f"LowRank is for {down.shape[0]} rows; the call has {x.shape[0]}"
                )
            x = nn.expand(x, (down.shape[0], *x.shape[1:]))
        if leaf.kind == "conv2d":
            return silenced(nn, self.scale, self._convolve(nn, leaf, x, down, up, mid))
        if not self.stacked:
            h = scaled(nn, self.scale, nn.linear(Arrays(down), x, down.shape[0], False))
            return silenced(nn, self.scale, nn.linear(Arrays(up), h, up.shape[0], False))
        h = nn.matmul(x.reshape(x.shape[0], -1, x.shape[-1]), nn.permute(down, (0, 2, 1)))
        y = nn.matmul(scaled(nn, self.scale, h), nn.permute(up, (0, 2, 1)))
        return silenced(nn, self.scale, y.reshape(*x.shape[:-1], leaf.shape[0]))

    def difference(self, nn: Operations, leaf: Leaf, weight: Array) -> Difference:
        self.alike()
        down, up = nn.float32(self.down), nn.float32(self.up)
        mid = None if self.mid is None else nn.float32(self.mid)
        product = merged(nn, up.reshape(up.shape[0], -1), down, mid)
        scale = self.scale if is_number(self.scale) else nn.float32(self.scale.reshape(-1)[0])
        return Difference(product.reshape(leaf.shape) * scale)

    def _convolve(
        self, nn: Operations, leaf: Leaf, x: Array, down: Array, up: Array, mid: Array | None
    ) -> Array:
        rows, fold = x.shape[0], 1
        if self.stacked:  # rows become groups of channels of one row
            fold, x = rows, x.reshape(1, -1, *x.shape[2:])
        groups = fold * leaf.groups

        def conv(weight: Array, x: Array, stride: int = 1, padding: int = 0) -> Array:
            weight = weight.reshape(-1, *weight.shape[-3:])
            width, kernel = weight.shape[0], weight.shape[-1]
            return nn.conv2d(Arrays(weight), x, width, kernel, stride, padding, False, groups)

        def each(weight: Array) -> Array:  # the groups of a layer share what leads to the rank
            if leaf.groups == 1:
                return weight
            sizes = weight.shape[-4:]
            return nn.expand(weight.reshape(fold, 1, *sizes), (fold, leaf.groups, *sizes))

        if mid is None:
            h = conv(each(down), x, leaf.stride, leaf.padding)
        else:
            h = conv(each(mid), conv(each(down), x), leaf.stride, leaf.padding)
        if not self.stacked:
            return conv(up, scaled(nn, self.scale, h))
        h = scaled(nn, self.scale, h.reshape(rows, -1, *h.shape[2:])).reshape(*h.shape)
        return conv(up, h).reshape(rows, leaf.shape[0], *h.shape[2:])

    def rows(self, nn: Operations, start: int, stop: int, of: int) -> LowRank:
        if not self.stacked:
            return replace(self, scale=scale_on_rows(nn, self, self.down, start, stop, of))
        if self.down.shape[0] != stop - start:
            raise ControlError(f"LowRank is for {self.down.shape[0]} rows, not {stop - start}")
        sides = start, of - stop
        down, up, mid = (None if a is None else padded(nn, a, *sides) for a in self._arrays)
        scale = self.scale
        if by_row(scale):
            scale = padded(nn, scale.reshape(-1), *sides)
        return LowRank(down, up, scale, mid)

    @property
    def _arrays(self) -> tuple[Array, Array, Array | None]:
        return self.down, self.up, self.mid


@dataclass(frozen=True, eq=False)
class Full(Delta):
    """A difference to the whole weight and bias, at layers of every kind and at raw parameters.

    Every operation is linear in its parameters, so the layer runs once more on the differences,
    and `scale`, a number or an array `(rows,)`, weighs what comes out. A raw parameter is the same
    for all rows. Either of weight and bias may be None, which leaves it as it is.
    """

    weight: Any
    bias: Any = None
    scale: Any = 1.0

    def __post_init__(self) -> None:
        if self.weight is None and self.bias is None:
            raise ControlError("Full has neither weight nor bias")
        as_float(self)

    @property
    def count(self) -> int | None:
        return count_of(self.scale)

    def check(self, leaf: Leaf) -> None:
        check_scale(self.scale)
        biased = leaf.bias and leaf.kind not in ("embedding", "parameter")
        for name, a, shape in (
            ("weight", self.weight, leaf.shape),
            ("bias", self.bias, leaf.shape[:1] if biased else None),
        ):
            if a is not None and (shape is None or tuple(a.shape) != shape):
                there = f"{leaf.shape} has no {name}" if shape is None else f"has {name} {shape}"
                raise ControlError(f"Full has {name} {tuple(a.shape)}; the {leaf.kind} {there}")
        if leaf.kind == "parameter" and self.by_row:
            raise ControlError(
                f"Full has scale {tuple(self.scale.shape)}; a parameter {leaf.shape} is the same "
                "for all rows"
            )

    def added(self, nn: Operations, leaf: Leaf, x: Array) -> Array:
        weight, bias = self.weight, self.bias
        if leaf.kind != "embedding":  # where x holds numbers of tokens
            weight, bias = cast_to(nn, weight, x), cast_to(nn, bias, x)
        if leaf.kind == "parameter":
            scale = self.scale if is_number(self.scale) else self.scale.reshape(-1)[0]
            return weight * scale
        if leaf.kind in ("group_norm", "layer_norm"):
            weight = bias * 0 if weight is None else weight
            bias = weight * 0 if bias is None else bias
        if weight is None:
            ones = (1,) * (len(x.shape) - 1)
            y = bias.reshape(1, -1, 1, 1) if leaf.kind == "conv2d" else bias.reshape(*ones, -1)
        else:
            y = operate(nn, replace(leaf, bias=bias is not None), Arrays(weight, bias), x)
        return silenced(nn, self.scale, scaled(nn, self.scale, y))

    def difference(self, nn: Operations, leaf: Leaf, weight: Array) -> Difference:
        self.alike()
        scale = self.scale if is_number(self.scale) else nn.float32(self.scale.reshape(-1)[0])
        weight, bias = (
            None if a is None else nn.float32(a) * scale for a in (self.weight, self.bias)
        )
        return Difference(weight, bias)

    def rows(self, nn: Operations, start: int, stop: int, of: int) -> Full:
        like = self.bias if self.weight is None else self.weight
        return replace(self, scale=scale_on_rows(nn, self, like, start, stop, of))


@dataclass(frozen=True, eq=False)
class Sum(Delta):
    """Several deltas at one leaf: those that replace the weight do it in order, the others add."""

    deltas: tuple[Delta, ...]

    @property
    def parts(self) -> tuple[Delta, ...]:
        return tuple(part for delta in self.deltas for part in delta.parts)

    @property
    def by_row(self) -> bool:
        return any(delta.by_row for delta in self.deltas)

    def check(self, leaf: Leaf) -> None:
        for delta in self.deltas:
            delta.check(leaf)

    def weighed(self, factor: Any) -> Sum:
        return Sum(tuple(delta.weighed(factor) for delta in self.deltas))

    def difference(self, nn: Operations, leaf: Leaf, weight: Array) -> Difference:
        found = [delta.difference(nn, leaf, weight) for delta in self.deltas]
        return Difference(*(_added_up(parts) for parts in zip(*found, strict=True)))

    def rows(self, nn: Operations, start: int, stop: int, of: int) -> Sum:
        return Sum(tuple(delta.rows(nn, start, stop, of) for delta in self.deltas))


def _added_up(arrays: Iterable[Array | None]) -> Array | None:
    there = [a for a in arrays if a is not None]
    return sum(there[1:], there[0]) if there else None


def merged(nn: Operations, up: Array, down: Array, mid: Array | None = None) -> Array:
    """The weight `(out, in, ...)` of layers one behind another: `up (out, rank)`, `mid (rank,
    inner, kernel, kernel)` where there is one (a Tucker decomposition), and `down (rank or inner,
    in, ...)`."""
    if mid is None:
        return nn.matmul(up, down.reshape(down.shape[0], -1))
    rank, inner, *kernel = mid.shape
    spread = nn.matmul(up, mid.reshape(rank, -1)).reshape(up.shape[0], inner, -1)
    whole = nn.matmul(nn.permute(spread, (0, 2, 1)), down.reshape(inner, -1))
    return nn.permute(whole, (0, 2, 1)).reshape(up.shape[0], -1, *kernel)


def together(*several: Deltas) -> dict[str, Delta]:
    """The deltas of several adapters in one mapping; where they meet, they form a `Sum`."""
    at: dict[str, tuple[Delta, ...]] = {}
    for deltas in several:
        for path, delta in deltas.items():
            at[path] = (*at.get(path, ()), *delta.parts)
    return {path: parts[0] if len(parts) == 1 else Sum(parts) for path, parts in at.items()}


def on_rows(nn: Operations, deltas: Deltas, start: int, stop: int, of: int) -> dict[str, Delta]:
    """The deltas acting on rows `start` to `stop` alone of a call of `of` rows.

    Factors per row become arrays, so a compiled program serves any rows.

    Raises:
        ControlError: the rows are not in the call, or a delta changes all rows alike.
    """
    if not 0 <= start < stop <= of:
        raise ControlError(f"rows {start} to {stop} are not in a call of {of} rows")
    if (start, stop) == (0, of):
        return dict(deltas)
    limited = {}
    for path, delta in deltas.items():
        with naming(path):
            limited[path] = delta.rows(nn, start, stop, of)
    return limited


def check_rows(deltas: Deltas, rows: int) -> None:
    """Check that what changes rows differently is for a call of so many rows.

    Raises:
        ControlError: it is for another number.
    """
    for path, delta in deltas.items():
        for part in delta.parts:
            if part.count not in (None, rows):
                raise ControlError(
                    f"delta at '{path}': {type(part).__name__} is for {part.count} rows; the call "
                    f"has {rows}"
                )


def check_paths(layout: Layout, deltas: Deltas) -> None:
    """Check before any work that each delta fits a leaf of the network.

    Raises:
        ControlError: a path is no leaf; it names similar ones. Or a delta does not fit its leaf;
            it names the path and both shapes.
    """
    for path, delta in deltas.items():
        leaf = layout.leaves.get(path)
        if leaf is None:
            near = get_close_matches(path, layout.leaves, 3, 0.0)
            raise ControlError(
                f"delta at '{path}': the network has no such layer; near it are "
                f"{', '.join(map(repr, near))}"
            )
        with naming(path):
            delta.check(leaf)


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Put the path of a leaf before the `ControlError` of a delta."""
    try:
        yield
    except ControlError as error:
        raise ControlError(f"delta at '{path}': {error}") from None
