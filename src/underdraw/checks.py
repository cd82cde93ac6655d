"""Checks of single arguments. An error names the argument, its value and what is allowed.

Values may be anything: arrays that have no truth value, objects that cannot be printed, lists that
hold themselves. So nothing is compared or printed here before its type is known (`shown`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from numbers import Integral, Real
from typing import Any

import numpy as np

from underdraw.errors import InputError, InputTypeError
from underdraw.limits import LARGEST_FACTOR as LARGEST_FACTOR
from underdraw.shown import MOST_SHOWN as MOST_SHOWN, shown as shown

DEVICES = ("cpu", "cuda", "mps", "gpu", "tpu", "xpu", "npu", "Ascend", "GPU", "CPU", "meta")
"""What frameworks call devices, before a colon and a number."""


def whole(name: str, value: Any, low: int = 1, high: int | None = None) -> int:
    """A whole number of at least `low` and at most `high`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputTypeError(f"{name}={shown(value)} is not a whole number")
    if value < low:
        raise InputError(f"{name}={shown(value)} is too small; allowed: {low} or more")
    if high is not None and int(value) > high:
        raise InputError(f"{name}={shown(value)} is too large; allowed: {low} .. {high}")
    return int(value)


def number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number between `low` and `high`, both included."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputTypeError(f"{name}={shown(value)} is not a number")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not (math.isfinite(found) and low <= found <= high):
        told = shown(value) if math.isinf(found) else found
        raise InputError(f"{name}={told} is out of range; allowed: finite, {low} .. {high}")
    return found


def factor(name: str, value: Any) -> float:
    """What predictions, residuals or attention are multiplied by: at most `LARGEST_FACTOR`."""
    return number(name, value, -LARGEST_FACTOR, LARGEST_FACTOR)


def is_number(value: Any) -> bool:
    """Whether it is a real number, of numpy's scalars, too, and no bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def flag(name: str, value: Any) -> bool:
    """True or False; what only counts as one of them is a slip, such as an argument too many."""
    if not isinstance(value, bool | np.bool_):
        raise InputTypeError(f"{name}={shown(value)} is not a switch; allowed: True, False")
    return bool(value)


def choice(name: str, value: Any, allowed: Sequence[Any]) -> Any:
    """One of a few values."""
    if not is_one_of(value, allowed):
        listed = ", ".join(map(repr, allowed))
        raise InputError(f"{name}={shown(value)} is not known; allowed: {listed}")
    return value


def is_one_of(value: Any, allowed: Sequence[Any]) -> bool:
    """Whether a value is one of some plain ones, and of their type."""
    return any(isinstance(value, type(one)) and bool(value == one) for one in allowed)


def function(name: str, value: Any) -> Any:
    """Something to call, or None. A coroutine or generator function is none: to call it runs
    nothing."""
    if value is not None and not callable(value):
        raise InputTypeError(f"{name}={shown(value)} cannot be called; allowed: a function, None")
    kinds = (iscoroutinefunction, isasyncgenfunction, isgeneratorfunction)
    if any(kind(value) or kind(type(value).__call__) for kind in kinds):
        raise InputTypeError(
            f"{name}={shown(value)} is a coroutine or generator function, of which a call runs "
            "nothing; allowed: a function, None"
        )
    return value


def sequence(name: str, value: Any, of: str) -> list[Any]:
    """A list or tuple of anything, as a list; `of` says what it should hold."""
    if not isinstance(value, list | tuple):
        raise InputTypeError(f"{name}={shown(value)} is not a list of {of}")
    return list(value)


def listed(name: str, value: Any, of: str) -> list[Any]:
    """A list, a tuple or an array of anything, as a list; `of` says what it should hold."""
    if hasattr(value, "tolist"):
        try:
            value = value.tolist()
        except Exception as error:  # each framework has its own, for what lies nowhere
            raise InputTypeError(f"{name}={shown(value)} holds nothing that can be read") from error
    return sequence(name, value, of)


def numbers(name: str, value: Any) -> tuple[float, ...]:
    """A list of numbers (of any framework's, too), or an array of one axis: at least one, all
    finite."""
    wrong = f"{name}={shown(value)} must be a list of numbers"
    try:
        each = listed(name, list(value) if isinstance(value, range) else value, "numbers")
        if any(isinstance(one, bool | str | bytes) for one in each):
            raise InputTypeError(wrong)
        found = tuple(map(_float, each))
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        raise InputTypeError(wrong) from None
    if not found or not all(map(math.isfinite, found)):
        raise InputError(f"{name}={shown(value)} must hold at least one number, all finite")
    return found


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def path(name: str, value: Any) -> str:
    """The name of a file or folder."""
    if not isinstance(value, str | os.PathLike):
        raise InputTypeError(f"{name}={shown(value)} is not a path; allowed: a string, a Path")
    plain = os.fspath(value)
    whole = isinstance(plain, str) and bool(plain) and "\0" not in plain
    try:
        fits = whole and all(len(os.fsencode(part)) < 256 for part in plain.split(os.sep))
    except UnicodeEncodeError:
        fits = False
    if not fits:
        raise InputError(f"{name}={shown(value)} is no name of a file or folder")
    return plain


def device(name: str, value: Any) -> Any:
    """A device, by its name or number, or as its framework has it; or None."""
    known = isinstance(value, str) and value.partition(":")[0] in DEVICES
    number = is_number(value) and isinstance(value, Integral) and 0 <= int(value) < 1024
    its_own = type(value).__name__.lower().endswith("device") and not isinstance(value, type)
    if not (value is None or known or number or its_own):
        raise InputError(f"{name}={shown(value)} is not a device; allowed: {', '.join(DEVICES)}")
    return value


def usable(name: str, value: Any, framework: Any) -> Any:
    """A device on which the framework makes arrays here, or None."""
    try:
        framework.array(np.zeros(1, np.float32), device=device(name, value))
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name}={shown(value)} cannot be used here: {error!s:.100}") from error
    return value


def dtype(name: str, value: Any) -> Any:
    """A floating-point dtype as a framework has it, or by its name; or None."""
    if value is not None:
        told = getattr(value, "__name__", None) if isinstance(value, type) else shown(value)
        # JAX's own are numpy's, which have a shape as arrays do.
        array = hasattr(value, "shape") and not isinstance(value, np.dtype)
        if "float" not in str(told).lower() or array:
            kind = InputError if isinstance(value, str) else InputTypeError
            raise kind(f"{name}={shown(value)} is not a floating-point dtype")
    return value


def picture(name: str, value: Any) -> Any:
    """A PIL picture, by what it can do: nothing of PIL is known here."""
    if isinstance(value, type) or not (hasattr(value, "crop") and hasattr(value, "convert")):
        raise InputTypeError(f"{name}={shown(value)} is not a PIL picture")
    if 0 in value.size:
        raise InputError(f"{name} is {value.size[0]} x {value.size[1]} pixels, so empty")
    return value


def texts(name: str, value: Any) -> list[str]:
    """A string, or a list of at least one, as a list."""
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list | tuple) or not all(isinstance(text, str) for text in listed):
        raise InputTypeError(f"{name}={shown(value)} is not a string or a list of strings")
    if not listed:
        raise InputError(f"{name} is an empty list; give at least one")
    for text in listed:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{name}={shown(text)} is not valid unicode") from error
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
    if not finite(name, value, framework):
        raise InputError(f"{name} holds NaN or infinity")
    return value


def shaped(name: str, value: Any, shape: Sequence[int | None], framework: Any) -> Any:
    """An array of real numbers of a shape, where None stands for any size. Its numbers are not
    read, so this costs nothing on a device. Arrays of numpy serve wherever a framework takes them
    as its own (not on PyTorch)."""
    kind = framework.operations.name
    plain = isinstance(value, np.ndarray) and value.dtype.kind in "buif" and kind != "torch"
    if not (plain or framework.is_array(value)):
        raise InputTypeError(f"{name} is {type(value).__name__}; a {kind} array is needed")
    found = tuple(value.shape)
    fits = len(found) == len(shape)
    if not fits or any(s is not None and s != f for s, f in zip(shape, found, strict=True)):
        wanted = ", ".join("any" if s is None else str(s) for s in shape)
        raise InputError(f"{name} has shape {found}; needed is ({wanted})")
    if 0 in found:
        raise InputError(f"{name} has shape {found}, so it is empty")
    if "complex" in str(value.dtype).lower() or "sparse" in str(getattr(value, "layout", "")):
        raise InputTypeError(f"{name} is sparse or complex; dense real numbers are needed")
    return value


def finite(name: str, value: Any, framework: Any) -> bool:
    """Whether an array of the framework holds neither NaN nor infinity.

    Raises:
        InputTypeError: see `readable`.
    """
    return readable(name, value, framework.is_finite)


def readable(name: str, value: Any, read: Callable[[Any], Any]) -> Any:
    """What `read` makes of an array.

    Raises:
        InputTypeError: it holds no numbers that could be read, such as a tensor on "meta", or not
            one after the other, such as a sparse one.
    """
    if "sparse" in str(getattr(value, "layout", "")):
        raise InputTypeError(f"{name} is sparse; a dense array is needed")
    try:
        if getattr(value, "is_meta", False) and type(value).__module__.startswith("torch"):
            raise RuntimeError("a tensor without data")  # PyTorch takes seconds to say so
        return read(value)
    except (RuntimeError, NotImplementedError, TypeError) as error:
        place = getattr(value, "device", None)
        raise InputTypeError(f"{name} on {place} holds no numbers that can be read") from error
