"""The three frameworks a network program runs on, imported only when asked for."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any, cast

from underdraw.backends.framework import Framework
from underdraw.backends.once import once
from underdraw.errors import InputError, InputTypeError
from underdraw.shown import shown

NAMES = ("torch", "jax", "mindspore")
TELEMETRY = "openvino_telemetry"


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
        raise InputError(f"backend={shown(name)} is not known; allowed: {', '.join(NAMES)}")
    if importlib.util.find_spec(name) is None:
        raise InputError(
            f"backend={name!r} needs the package {name}: pip install 'underdraw[{name}]'"
        )
    return cast(Framework, importlib.import_module(f"underdraw.backends.{name}"))


def graphs_installed() -> bool:
    """Whether `graphs` can be had here."""
    return importlib.util.find_spec("openvino") is not None


def graphs() -> Any:
    """The operations that build graphs, and what compiles these (`backends.openvino`).

    Raises:
        InputError: the package openvino is not installed.
    """
    if not graphs_installed():
        raise InputError(
            "engine='openvino' needs the package openvino: pip install 'underdraw[openvino]'"
        )
    if "openvino" not in sys.modules:
        _import_in_silence()
    return importlib.import_module("underdraw.backends.openvino")


def _import_in_silence() -> None:
    """Import openvino without its telemetry, which would report the import to Google from a forked
    process. Without that package openvino does as well."""
    modules: dict[str, Any] = sys.modules
    if TELEMETRY in modules:
        return
    modules[TELEMETRY] = None
    try:
        importlib.import_module("openvino")
    finally:
        del modules[TELEMETRY]


def of(array: Any, name: str = "sample") -> Framework:
    """The module of the backend that an array belongs to; `name` is the argument's, for errors.

    Raises:
        InputTypeError: it belongs to none.
    """
    root = type(array).__module__.partition(".")[0]
    known = {"jaxlib": "jax"}.get(root, root)
    if known not in NAMES or not get(known).is_array(array):
        raise InputTypeError(f"{name} is a {type(array).__name__}; allowed: an array of a backend")
    return get(known)
