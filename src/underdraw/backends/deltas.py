"""What can be laid over a layer: low-rank and full differences, and the contract for other kinds.

A delta is a frozen dataclass with arrays as fields. `backends.adapted` lays it over a leaf of a
parameter tree; this file knows nothing of trees.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, ClassVar

from underdraw.backends.contract import Array, Operations
from underdraw.backends.layout import Layout, Leaf
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


class Delta:
    """The contract. A kind says in `check` what it fits and acts by `added`, by `replaced` or both.

    `leaf` describes the layer as it is used: kind, shape of the weight `(out, in)` or `(out, in /
    groups, kernel, kernel)`, bias, stride, padding, groups, eps. The errors of a kind name sizes;
    the path of the leaf is put before them by whoever knows it.
    """

    replaces: ClassVar[bool] = False
    """Whether the layer runs with the weight that `replaced` returns."""

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
        _as_float(self)

    @property
    def stacked(self) -> bool:
        """Whether each row has its own `down` and `up`."""
        return len(self.down.shape) in (3, 5)

    @property
    def count(self) -> int | None:
        return self.down.shape[0] if self.stacked else _count(self.scale)

    def check(self, leaf: Leaf) -> None:
        if leaf.kind not in ("linear", "conv2d"):
            raise ControlError(f"LowRank fits linear and conv2d, not {leaf.kind} {leaf.shape}")
        _check_scale(self.scale)
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
        down, up, mid = (_cast(nn, a, x) for a in self._arrays)
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
            return replace(self, scale=_scale_on_rows(nn, self, self.down, start, stop, of))
        if self.down.shape[0] != stop - start:
            raise ControlError(f"LowRank is for {self.down.shape[0]} rows, not {stop - start}")
        sides = start, of - stop
        down, up, mid = (None if a is None else _padded(nn, a, *sides) for a in self._arrays)
        scale = self.scale
        if _by_row(scale):
            scale = _padded(nn, scale.reshape(-1), *sides)
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
        _as_float(self)

    @property
    def count(self) -> int | None:
        return _count(self.scale)

    def check(self, leaf: Leaf) -> None:
        _check_scale(self.scale)
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
            weight, bias = _cast(nn, weight, x), _cast(nn, bias, x)
        if leaf.kind == "parameter":
            scale = self.scale if _is_number(self.scale) else self.scale.reshape(-1)[0]
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

    def rows(self, nn: Operations, start: int, stop: int, of: int) -> Full:
        like = self.bias if self.weight is None else self.weight
        return replace(self, scale=_scale_on_rows(nn, self, like, start, stop, of))


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

    def rows(self, nn: Operations, start: int, stop: int, of: int) -> Sum:
        return Sum(tuple(delta.rows(nn, start, stop, of) for delta in self.deltas))


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


def scaled(nn: Operations, scale: Any, x: Array) -> Array:
    """`x * scale`; an array `(rows,)` has a factor for each row of `x (rows, ...)`.

    Where `x` has one row, which serves all, the result has all rows.

    Raises:
        ControlError: `x` has another number of rows.
    """
    if _is_number(scale):
        return x * scale
    factors = nn.cast(scale, x).reshape(-1, *(1 for _ in x.shape[1:]))
    if x.shape[0] != 1 and factors.shape[0] not in (1, x.shape[0]):
        raise ControlError(f"scale is for {factors.shape[0]} rows; the call has {x.shape[0]}")
    return x * factors


def silenced(nn: Operations, scale: Any, y: Array) -> Array:
    """`y`, and 0 in rows whose factor is 0: there a weight that is not finite would give NaN, in
    rows of a call that belong to other runs."""
    if not _by_row(scale):
        return y
    factors = nn.cast(scale, y).reshape(-1, *(1 for _ in y.shape[1:]))
    return nn.where(factors != 0, y, 0.0)


def _cast(nn: Operations, x: Array | None, like: Array) -> Any:
    return None if x is None else nn.cast(x, like)


def _is_number(scale: Any) -> bool:
    return isinstance(scale, int | float)


def _by_row(scale: Any) -> bool:
    return not _is_number(scale) and tuple(scale.shape) not in ((), (1,))


def _count(scale: Any) -> int | None:
    return scale.shape[0] if _by_row(scale) else None


def _as_float(delta: Any) -> None:
    # A whole number would belong to the structure of a call, and a program be compiled for each.
    if isinstance(delta.scale, int):
        object.__setattr__(delta, "scale", float(delta.scale))


def _check_scale(scale: Any) -> None:
    if _is_number(scale):
        return
    shape = getattr(scale, "shape", None)
    if shape is None:
        raise ControlError(f"scale={scale!r} is neither a number nor an array with one per row")
    if any(size != 1 for size in shape[1:]):
        raise ControlError(f"scale has shape {tuple(shape)}; allowed: a number, or (rows,)")


def _scale_on_rows(nn: Operations, delta: Any, like: Array, start: int, stop: int, of: int) -> Any:
    scale, count = delta.scale, stop - start
    if _is_number(scale):
        scale = nn.arange(count, like) * 0 + scale
    else:
        scale = scale.reshape(-1)
        scale = nn.expand(scale, (count,)) if scale.shape[0] == 1 else scale
        if scale.shape[0] != count:
            raise ControlError(f"scale is for {scale.shape[0]} rows, not for {count}")
    return _padded(nn, scale, start, of - stop)


def _padded(nn: Operations, x: Array, before: int, behind: int) -> Array:
    """Rows of zeros around `x (rows, ...)`."""
    # Not `x[:1] * 0`: of infinity that is NaN.
    sizes = x.shape[1:]
    none = nn.cast(nn.arange(1, x), x).reshape(1, *(1 for _ in sizes))
    parts = [x]
    if before:
        parts.insert(0, nn.expand(none, (before, *sizes)))
    if behind:
        parts.append(nn.expand(none, (behind, *sizes)))
    return nn.concat(parts, 0)
