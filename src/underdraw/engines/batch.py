"""The questions of several runs answered by one call of the network they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from underdraw.engines.eager import EAGER
from underdraw.engines.engine import DECLINED, Engine, Question, answer
from underdraw.networks import joining
from underdraw.networks.unet import CONTEXT, UNET, Inputs, begun

KEPT = 4
"""Joined contexts that are remembered, for runs go on together for many steps."""


@dataclass
class Batch:
    """Answers questions about one UNet with one call, on top of another engine.

    Each answer is what the run would get alone, up to the rounding of kernels that sum in another
    order for more rows. Questions that cannot be joined (another network, size of latents, dtype)
    are answered one after another.
    """

    engine: Engine = EAGER
    _contexts: list[tuple[tuple[Any, ...], Any]] = field(default_factory=list, repr=False)

    def run(self, question: Question) -> Any:
        """A single question, as the engine below answers it."""
        return self.engine.run(question)

    def run_all(self, questions: Sequence[Question]) -> list[Any]:
        """The answers in order; in place of one that failed its exception.

        An error in what a single run brings (a hook that breaks its contract) is that run's alone.
        """
        started = [self._started(question) for question in questions]
        answers: list[Any] = [None] * len(questions)
        asked = [i for i, question in enumerate(started) if not question.program.loops]
        for i in set(range(len(started))) - set(asked):
            answers[i] = DECLINED  # call by call it can share them
        for group in _groups(started, asked):
            joined = self._together([started[i] for i in group]) if len(group) > 1 else None
            for place, i in enumerate(group):
                answers[i] = self._alone(started[i]) if joined is None else joined[place]
        return answers

    def _alone(self, question: Question) -> Any:
        try:
            return answer(self.engine, question)
        except Exception as error:
            return error

    def _together(self, questions: Sequence[Question]) -> list[Any] | None:
        """One call for all; None where it fails, so that each is asked alone and the error comes
        to its own run."""
        first, calls = questions[0], [Inputs(*question.inputs) for question in questions]
        try:
            with first.model._framework.no_grad():
                context = self._context(first, calls)
                bare = [call._replace(context={}) for call in calls]
                inputs = joining.join(first.nn, first.model.config, bare)
            inputs = inputs._replace(context=context)
            return joining.split(answer(self.engine, replace(first, inputs=inputs)), calls)
        except Exception:
            return None

    def _started(self, question: Question) -> Question:
        """A question about the UNet after what acts before its first convolution; one whose hooks
        break their contract stays as it is, and is told so when it is asked alone."""
        if question.program != UNET:
            return question
        inputs, nn = Inputs(*question.inputs), question.nn
        sites = inputs.sites
        if not (sites.model_input or sites.context):
            return question
        try:
            with question.model._framework.no_grad():
                x, context = begun(nn, inputs.x, inputs.context, sites)
            if sites.context:
                asked = replace(question, program=CONTEXT, inputs=(context,))
                context = answer(self.engine, asked)
        except Exception:
            return question
        sites = replace(sites, context=(), model_input=())
        return replace(question, inputs=Inputs(x, inputs.time, context, sites))

    def _context(self, question: Question, calls: Sequence[Inputs]) -> Any:
        """The joined keys and values; those of the same runs are joined once."""
        contexts = tuple(call.context for call in calls)
        for known, joined in self._contexts:
            if len(known) == len(contexts) and all(
                a is b for a, b in zip(known, contexts, strict=True)
            ):
                return joined
        joined = joining.join_contexts(question.nn, contexts)
        self._contexts = [(contexts, joined), *self._contexts[: KEPT - 1]]
        return joined

    def __repr__(self) -> str:
        return f"Batch({self.engine!r})"


def _groups(questions: Sequence[Question], numbers: Sequence[int]) -> list[list[int]]:
    """Those of the numbers of questions that can be one call."""
    groups: list[list[int]] = []
    for i in numbers:
        for group in groups:
            if _may_join(questions[group[0]], questions[i]):
                group.append(i)
                break
        else:
            groups.append([i])
    return groups


def _may_join(a: Question, b: Question) -> bool:
    return (
        a.program == b.program == UNET
        and a.model is b.model
        and a.nn == b.nn
        and joining.may_join(Inputs(*a.inputs), Inputs(*b.inputs))
    )
