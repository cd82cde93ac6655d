"""Which engine answers the questions of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from underdraw.engines.eager import EAGER
from underdraw.engines.engine import Engine
from underdraw.errors import InputError, InputTypeError

NAMES: Mapping[str, Engine] = {"eager": EAGER}


def as_engine(engine: Any) -> Engine:
    """An engine, or the one of a name; None is the eager one.

    Raises:
        InputError: there is no engine of that name.
        InputTypeError: it is neither a name nor something with a method `run`.
    """
    if engine is None:
        return EAGER
    if isinstance(engine, str):
        if engine not in NAMES:
            allowed = ", ".join(map(repr, NAMES))
            raise InputError(
                f"engine={engine!r} is not known; allowed: {allowed}, None, or an object with a "
                "method run(question)"
            )
        return NAMES[engine]
    if isinstance(engine, type) or not callable(getattr(engine, "run", None)):
        raise InputTypeError(
            f"engine={engine!r:.100} has no method run(question); allowed: "
            f"{', '.join(map(repr, NAMES))}, None, or an object that has one"
        )
    return engine
