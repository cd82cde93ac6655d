"""Who runs network programs: `eager` as they are written, others compiled or together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from underdraw import backends
from underdraw.checks import shown
from underdraw.engines.aot import Packaged, Packing
from underdraw.engines.auto import Auto
from underdraw.engines.compiled import Compiled, Regional
from underdraw.engines.cuda_graphs import CudaGraphs
from underdraw.engines.eager import EAGER
from underdraw.engines.engine import Engine
from underdraw.engines.openvino import OpenVino
from underdraw.errors import InputError, InputTypeError

__all__ = [
    "EAGER",
    "NAMES",
    "Auto",
    "Compiled",
    "CudaGraphs",
    "Engine",
    "OpenVino",
    "Packaged",
    "Packing",
    "Regional",
    "get",
    "name_of",
]

NAMES: Mapping[str, Callable[[], Engine]] = {
    "eager": lambda: EAGER,
    "compiled": Regional,
    "jit": Compiled,
    "openvino": OpenVino,
    "graph": CudaGraphs,
    "auto": Auto,
}
"""By name what makes an engine: each pipeline that asks gets one of its own, but for eager."""


def get(engine: Any = None) -> Engine:
    """An engine by its name, or itself; None is the eager one.

    Raises:
        InputError, InputTypeError: there is none of this name, its package is not installed, or it
            has no method `run`.
    """
    names = ", ".join(map(repr, NAMES))
    if engine is None:
        return EAGER
    if isinstance(engine, str):
        if engine not in NAMES:
            raise InputError(f"engine={shown(engine)} is not known; allowed: {names}, or an engine")
        if engine == "openvino":
            backends.graphs()
        return NAMES[engine]()
    if isinstance(engine, type) or not isinstance(engine, Engine):
        raise InputTypeError(
            f"engine={shown(engine)} has no method `run`; allowed: {names}, or an engine"
        )
    return engine


def name_of(engine: Engine) -> str | None:
    """The name under which `get` makes such an engine; None where there is none, as for one with
    settings of its own. Of `auto` that of its choice, once it has chosen."""
    if getattr(engine, "compiler", None) is not None:
        return None
    if isinstance(engine, OpenVino) and engine.precision != "auto":
        return None
    if isinstance(engine, Regional) and engine.dynamic:
        return None
    if isinstance(engine, CudaGraphs) and engine.fused:
        return None
    if isinstance(engine, Auto) and engine.chosen is not None:
        return engine.chosen
    return next((name for name, make in NAMES.items() if type(make()) is type(engine)), None)
