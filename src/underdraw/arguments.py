"""Arguments of public methods, checked by what their annotations say, before the method begins."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar, cast

import numpy as np

from underdraw import checks
from underdraw.errors import InputError, InputTypeError

Function = TypeVar("Function", bound=Callable[..., Any])
Check = Callable[[str, Any], Any]


def text(name: str, value: Any) -> str:
    """A string of valid unicode."""
    if not isinstance(value, str):
        raise InputTypeError(f"{name}={checks.shown(value)} is not a string")
    checks.texts(name, value)
    return value


def part(name: str, value: Any) -> str:
    """Text that can stand in a path: a folder inside of another, or none."""
    return checks.path(name, value) if text(name, value) else value


def dtype(name: str, value: Any) -> Any:
    """A floating-point dtype, "auto", or some by component."""
    if not (isinstance(value, Mapping) or (isinstance(value, str) and value == "auto")):
        checks.dtype(name, value)
    return value


def named(name: str, value: Any) -> str:
    """A path as callers give it, or a name on the Hub."""
    if isinstance(value, str) and not value:
        raise InputError(f"{name}={value!r} is empty; wanted a folder, a file or a name on the Hub")
    return checks.path(name, value)


def whole(name: str, value: Any) -> int:
    return checks.whole(name, value, -(2**63), 2**63)


def text_or_whole(name: str, value: Any) -> int | str:
    return text(name, value) if isinstance(value, str) else whole(name, value)


def numeric(name: str, value: Any) -> Any:
    """An array of numpy with real numbers, not all too large for a picture's."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "buif":
        raise InputTypeError(
            f"{name} is {type(value).__name__}; an array of real numbers is needed"
        )
    if not value.size:
        raise InputError(f"{name} has shape {value.shape}, so it is empty")
    return value


PLAIN: dict[frozenset[str], Check] = {
    frozenset({"bool"}): checks.flag,
    frozenset({"Literal[True]"}): checks.flag,
    frozenset({"str"}): text,
    frozenset({"int"}): whole,
    frozenset({"int", "str"}): text_or_whole,
    frozenset({"Image.Image"}): checks.picture,
    frozenset({"np.ndarray"}): numeric,
    frozenset({"str", "Path"}): named,
    frozenset({"Path"}): named,
}
"""By what an annotation allows besides None; any `PathLike` is a Path."""
NAMES: dict[str, Check] = {
    "dtype": dtype,
    "torch_dtype": dtype,
    "device": checks.device,
    "subfolder": part,
    "variant": part,
}
"""Of arguments whose annotation leaves it open, or cannot say it."""


def checked(function: Function) -> Function:
    """Have a method look at arguments that are plain: switches, texts, paths, and those of `NAMES`.

    Raises (the method that is decorated):
        InputError, InputTypeError: such an argument is something else; the message names it.
    """
    parameters = inspect.signature(function).parameters
    positions, by_name = tuple(parameters), dict[str, tuple[Check, bool]]()
    for name, parameter in parameters.items():
        parts = frozenset(
            "Path" if part.endswith("PathLike[str]") else part
            for part in str(parameter.annotation).split(" | ")
        )
        check = NAMES.get(name) or PLAIN.get(parts - {"None"})
        if check is not None:
            by_name[name] = check, "None" in parts or parameter.default is None

    @wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        for name, value in (*zip(positions, arguments, strict=False), *named.items()):
            if name in by_name:
                check, optional = by_name[name]
                if not (optional and value is None):
                    check(name, value)
        return function(*arguments, **named)

    return cast(Function, call)
