"""The three frameworks a network program runs on, imported only when asked for."""

from __future__ import annotations

import importlib
import importlib.util
from typing import cast

from underdraw.backends.framework import Framework
from underdraw.backends.once import once
from underdraw.errors import InputError

NAMES = ("torch", "jax", "mindspore")


def installed() -> tuple[str, ...]:
    """Names of the backends whose framework can be imported here."""
    return tuple(name for name in NAMES if importlib.util.find_spec(name) is not None)


@once
def get(name: str = "torch") -> Framework:
    """The module of a backend: its operations with default settings and its tree functions.

    Raises:
        InputError: the backend is unknown, or its framework is not installed.
    """
    if name not in NAMES:
        raise InputError(f"backend={name!r} is not known; allowed: {', '.join(NAMES)}")
    if importlib.util.find_spec(name) is None:
        raise InputError(
            f"backend={name!r} needs the package {name}: pip install 'underdraw[{name}]'"
        )
    return cast(Framework, importlib.import_module(f"underdraw.backends.{name}"))
