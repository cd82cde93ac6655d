"""The default engine: each program as it is written, on every backend."""

from __future__ import annotations

from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from underdraw.engines.compiled import Compiled
from underdraw.engines.engine import Question


class Eager:
    """Runs programs at once. A network that the caller has wrapped by `torch.compile` runs
    compiled, as the wrapper was told to."""

    def __init__(self) -> None:
        self._wrapped: WeakKeyDictionary[Any, Compiled] = WeakKeyDictionary()
        self._lock = Lock()

    def run(self, question: Question) -> Any:
        """The outputs, computed at once."""
        model = question.model
        compiler_of = getattr(model._framework, "compiler_of", None)
        compiler = None if compiler_of is None else compiler_of(model)
        if compiler is None:
            return question.program(question.nn, model, model.config, *question.inputs)
        with self._lock:
            if model not in self._wrapped:
                self._wrapped[model] = Compiled(compiler)
            wrapped = self._wrapped[model]
        return wrapped.run(question)

    def __reduce__(self) -> str:
        """For copies and pickles: it is one for all."""
        return "EAGER"

    def __repr__(self) -> str:
        return "Eager()"


EAGER = Eager()
