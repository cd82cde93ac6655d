"""Whole programs on MindSpore: recorded while they run, and run as a graph from then on.

`ms.jit` has three ways to a graph. The one that parses sources knows no exceptions but Python's
own, and the one that reads bytecode went back to single operations; so operations are recorded
(`capture_mode="trace"`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from itertools import count, repeat
from threading import RLock, Thread
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

from underdraw.backends.node import BaseRoot, Node, grow, walk
from underdraw.errors import InputError

_lock = RLock()
"""MindSpore records for the whole process: one graph is made, or run, at a time."""
_numbers = count()


def compiled(function: Callable[..., Any], spent: int | None = None) -> Callable[..., Any]:
    """The function `(*trees of lists) -> arrays` as a graph, for arguments of one structure.

    The first call runs as it is written, so mistakes are told there; the second one is recorded.
    Meanwhile no other thread may use MindSpore, whose recording would take its operations, too.
    Numbers become arrays, and parameters are arguments. `spent` has no use here.
    """
    return _Graph(function)


class _Graph:
    """One function, and what became of it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._graph: Callable[..., Any] | None = None
        self._called = False

    def __call__(self, *arguments: Any) -> list[Any]:
        arrays = list(_arrays(arguments))
        with _lock:
            if not self._called:
                made = self._function(*_rebuilt(arguments, iter(arrays)))
                self._called = True
                return made
            if self._graph is None:
                written = self._over_arrays(arguments)
                self._graph, made = _alone(lambda: _recording(written, arrays))
                return made
            return _listed(self._graph(*arrays))

    def _over_arrays(self, arguments: Any) -> Callable[..., Any]:
        # What is kept for the graph's life holds no array.
        structure = _rebuilt(arguments, repeat(None))

        def graph(*arrays: Any) -> Any:
            return tuple(self._function(*_rebuilt(structure, iter(arrays))))

        # MindSpore keeps graphs by name and address for ever, and addresses are used again.
        graph.__name__ = f"underdraw_{next(_numbers)}"
        return graph


def _recording(written: Any, arrays: list[Any]) -> tuple[Callable[..., Any], list[Any]]:
    """The graph of a function and what its first call gives, or a word where MindSpore cannot
    record it."""
    try:
        graph = ms.jit(written, capture_mode="trace")
        # It prints each array for a log that nobody sees: of long ones the ends are enough.
        with np.printoptions(threshold=1, edgeitems=1):
            return graph, _listed(graph(*arrays))
    except Exception as error:
        _stop_recording()
        raise InputError(
            f"engine='jit': MindSpore makes no graph of this program ({error}); engine='eager' "
            "runs it"
        ) from error


def _stop_recording() -> None:
    """Else everything that the process does from now on would be recorded."""
    for home in ("mindspore.graph", "mindspore.common"):  # it has moved
        with suppress(ImportError):
            import_module(f"{home}.jit_context").set_jit_context(None)
            setattr(import_module(f"{home}.jit_trace"), "_using_trace", False)  # noqa: B010


def _alone(call: Callable[[], Any]) -> Any:
    """What a function gives in a thread of its own. With each operation the stack is looked
    through: here it is short, and holds no code without a file (of a prompt, or `python -c`)."""
    made: list[Any] = []

    def run() -> None:
        try:
            made.append(call())
        except BaseException as error:  # handed over to the caller
            made.append(error)

    thread = Thread(target=run)
    thread.start()
    try:
        thread.join()
    finally:  # an interrupt waits for its end, too
        thread.join()
    if isinstance(made[0], BaseException):
        raise made[0]
    return made[0]


def _listed(outputs: Any) -> list[Any]:
    return list(outputs) if isinstance(outputs, tuple | list) else [outputs]


def _arrays(value: Any) -> Iterator[Tensor]:
    """Arrays, numbers as arrays, and parameters, in order."""
    if isinstance(value, list | tuple):
        for each in value:
            yield from _arrays(each)
    elif isinstance(value, float):
        yield Tensor(value, ms.float32)
    elif isinstance(value, Node | BaseRoot):
        yield from (each for _, each in walk(_tree(value)))
    else:
        yield value


def _rebuilt(value: Any, arrays: Iterator[Any]) -> Any:
    """The same with other arrays, which come in the order of `_arrays`."""
    if isinstance(value, list | tuple):
        return [_rebuilt(each, arrays) for each in value]
    if isinstance(value, Node | BaseRoot):
        tree = grow({name: next(arrays) for name, _ in walk(_tree(value))})
        if isinstance(value, Node):
            return tree
        made = object.__new__(type(value))
        vars(made).update(vars(value), _tree=tree)
        return made
    return next(arrays)


def _tree(value: Any) -> Node:
    return value if isinstance(value, Node) else value._tree
