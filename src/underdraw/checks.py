"""Checks of single arguments. An error names the argument, its value and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from underdraw.errors import InputError, InputTypeError


def whole(name: str, value: Any, low: int = 1, high: int | None = None) -> int:
    """A whole number of at least `low` and at most `high`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputTypeError(f"{name}={value!r} is not a whole number")
    if value < low:
        raise InputError(f"{name}={value} is too small; allowed: {low} or more")
    if high is not None and int(value) > high:
        raise InputError(f"{name}={value} is too large; allowed: {low} .. {high}")
    return int(value)


def number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number between `low` and `high`, both included."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputTypeError(f"{name}={value!r} is not a number")
    value = float(value)
    if not (math.isfinite(value) and low <= value <= high):
        raise InputError(f"{name}={value} is out of range; allowed: finite, {low} .. {high}")
    return value


def choice(name: str, value: Any, allowed: Sequence[Any]) -> Any:
    """One of a few values."""
    if value not in allowed:
        raise InputError(f"{name}={value!r} is not known; allowed: {', '.join(map(repr, allowed))}")
    return value


def texts(name: str, value: Any) -> list[str]:
    """A string, or a list of at least one, as a list."""
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list | tuple) or not all(isinstance(text, str) for text in listed):
        raise InputTypeError(f"{name}={value!r:.100} is not a string or a list of strings")
    if not listed:
        raise InputError(f"{name} is an empty list; give at least one")
    return list(listed)


def size(name: str, value: Any, factor: int) -> int:
    """An image side in pixels, a multiple of the autoencoder's factor."""
    if value % factor:
        below = max(value // factor, 1) * factor
        raise InputError(
            f"{name}={value} is not a multiple of {factor}; the nearest are {below} and "
            f"{below + factor}"
        )
    return value


def array(name: str, value: Any, shape: Sequence[int | None], framework: Any) -> Any:
    """An array of a shape, where None stands for any size, without NaN and infinity."""
    if not framework.is_array(value):
        kind = framework.operations.name
        raise InputTypeError(f"{name} is {type(value).__name__}; a {kind} array is needed")
    found = tuple(value.shape)
    fits = len(found) == len(shape)
    if not fits or any(s is not None and s != f for s, f in zip(shape, found, strict=True)):
        wanted = ", ".join("any" if s is None else str(s) for s in shape)
        raise InputError(f"{name} has shape {found}; needed is ({wanted})")
    if 0 in found:
        raise InputError(f"{name} has shape {found}, so it is empty")
    if not framework.is_floating(value):
        raise InputTypeError(f"{name} has dtype {value.dtype}; floating-point numbers are needed")
    if not framework.is_finite(value):
        raise InputError(f"{name} holds NaN or infinity")
    return value
