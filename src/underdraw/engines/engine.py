"""What an engine is: it answers the questions of a run, each a call of a network program.

The loop and the calls around it ask; they never call a network themselves. Everything that a call
needs is in the question, so an engine may compile the program, capture it, run it on another
machine, or answer the questions of several runs with one call.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from underdraw.backends.contract import Operations
from underdraw.networks.program import Program


@dataclass(frozen=True, eq=False)
class Question:
    """One call of a network program."""

    program: Program
    model: Any
    """The network: parameters and config (`models.base.Model`)."""
    inputs: tuple[Any, ...]
    """What follows the config in the program's arguments: trees of arrays and frozen values."""
    nn: Operations
    """The operations of the network's backend, with the settings of the pipeline that asks."""


class Declined:
    """What an engine answers to a question about many calls (`Program.loops`) that it would rather
    be asked one after another, as one that has calls of several runs share one."""


DECLINED = Declined()


@runtime_checkable
class Engine(Protocol):
    """Runs network programs."""

    def run(self, question: Question) -> Any:
        """The outputs of `question.program` for its inputs."""
        ...


def answer(engine: Engine, question: Question) -> Any:
    """What an engine answers; nothing is recorded for gradients."""
    with question.model._framework.no_grad():
        return engine.run(question)


Made = TypeVar("Made")


def answered(asking: Generator[Any, Any, Made], engine: Engine) -> Generator[Any, Any, Made]:
    """A run whose questions are answered by an engine; everything else it yields is handed out, and
    what is sent back goes in.

    An error of the engine ends the run, as if it had been raised where the run asked.
    """
    reply: Any = None
    with closing(asking):
        while True:
            try:
                handed = asking.send(reply)
            except StopIteration as end:
                return end.value
            if isinstance(handed, Question):
                reply = answer(engine, handed)
            else:
                reply = yield handed
