"""How much of a delta each row of a call gets: a number for all, or an array `(rows,)`."""

from __future__ import annotations

from typing import Any

from underdraw.backends.contract import Array, Operations
from underdraw.errors import ControlError


def scaled(nn: Operations, scale: Any, x: Array) -> Array:
    """`x * scale`; an array `(rows,)` has a factor for each row of `x (rows, ...)`.

    Where `x` has one row, which serves all, the result has all rows.

    Raises:
        ControlError: `x` has another number of rows.
    """
    if is_number(scale):
        return x * scale
    factors = nn.cast(scale, x).reshape(-1, *(1 for _ in x.shape[1:]))
    if x.shape[0] != 1 and factors.shape[0] not in (1, x.shape[0]):
        raise ControlError(f"scale is for {factors.shape[0]} rows; the call has {x.shape[0]}")
    return x * factors


def silenced(nn: Operations, scale: Any, y: Array) -> Array:
    """`y`, and 0 in rows whose factor is 0: there a weight that is not finite would give NaN, in
    rows of a call that belong to other runs."""
    if not by_row(scale):
        return y
    factors = nn.cast(scale, y).reshape(-1, *(1 for _ in y.shape[1:]))
    return nn.where(factors != 0, y, 0.0)


def cast_to(nn: Operations, x: Array | None, like: Array) -> Any:
    """`x` in the dtype of `like`; None stays None."""
    return None if x is None else nn.cast(x, like)


def is_number(scale: Any) -> bool:
    """Whether a scale is the same for all rows because it is a plain number."""
    return isinstance(scale, int | float)


def by_row(scale: Any) -> bool:
    """Whether a scale has a factor for each of several rows."""
    return not is_number(scale) and tuple(scale.shape) not in ((), (1,))


def count_of(scale: Any) -> int | None:
    """Of how many rows a scale tells; None: the same for any number."""
    return scale.shape[0] if by_row(scale) else None


def as_float(delta: Any) -> None:
    """Make the `scale` of a frozen delta a float."""
    # A whole number would belong to the structure of a call, and a program be compiled for each.
    if isinstance(delta.scale, int):
        object.__setattr__(delta, "scale", float(delta.scale))


def check_scale(scale: Any) -> None:
    """Raise a `ControlError` unless a scale is a number or an array `(rows,)`."""
    if is_number(scale):
        return
    shape = getattr(scale, "shape", None)
    if shape is None:
        raise ControlError(f"scale={scale!r} is neither a number nor an array with one per row")
    if any(size != 1 for size in shape[1:]):
        raise ControlError(f"scale has shape {tuple(shape)}; allowed: a number, or (rows,)")


def scale_on_rows(nn: Operations, delta: Any, like: Array, start: int, stop: int, of: int) -> Any:
    """The `scale` of a delta on rows `start` to `stop` of `of`, and 0 on all others."""
    scale, count = delta.scale, stop - start
    if is_number(scale):
        scale = nn.arange(count, like) * 0 + scale
    else:
        scale = scale.reshape(-1)
        scale = nn.expand(scale, (count,)) if scale.shape[0] == 1 else scale
        if scale.shape[0] != count:
            raise ControlError(f"scale is for {scale.shape[0]} rows, not for {count}")
    return padded(nn, scale, start, of - stop)


def padded(nn: Operations, x: Array, before: int, behind: int) -> Array:
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
