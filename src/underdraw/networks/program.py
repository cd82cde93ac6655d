"""A network program as a value: what an engine is asked to run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from underdraw.backends.contract import Node, Operations


@dataclass(frozen=True)
class Program:
    """A function `(nn, p, config, *inputs) -> outputs` under a name.

    Inputs and outputs are trees (`backends.tree`) of arrays and frozen values. A program reads
    nothing else and writes nothing, so whoever runs it may compile it, or run it elsewhere.
    """

    name: str
    function: Callable[..., Any]
    once: bool = False
    """Whether it runs once in a run: where operations start at once, compiling it gains nothing."""
    in_blocks: bool = False
    """Whether it takes a keyword `run`: how each block is run, `(block, *arguments)`."""
    as_written: bool = False
    """Whether it gains by the order of its operations, which a compiler of whole graphs changes."""
    spends: bool = False
    """Whether nobody needs the arrays of its first input afterwards: outputs may take their place.
    """

    loops: bool = False
    """Whether it makes many calls of a network at once: an engine may decline it
    (`engines.engine.DECLINED`), and is then asked for each call."""

    def __call__(self, nn: Operations, p: Node, config: Any, *inputs: Any, **how: Any) -> Any:
        return self.function(nn, p, config, *inputs, **how)

    def __repr__(self) -> str:
        return f"Program({self.name})"


class Ask(Protocol):
    """Has a program run on a network, by whatever engine, and gives its outputs."""

    def __call__(self, program: Program, model: Any, *inputs: Any) -> Any:
        """`model` is a `models.base.Model`: the parameters and the config."""
        ...


def directly(program: Program, model: Any, *inputs: Any) -> Any:
    """Run a program at once, with the default operations of the network's backend."""
    return program(model.nn, model, model.config, *inputs)
