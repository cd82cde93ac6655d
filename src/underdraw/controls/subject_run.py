"""The subjects of a run at work: where their tokens stand, and what each call sees of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import lcm
from typing import TYPE_CHECKING, Any

import numpy as np

from underdraw.backends.contract import Array, Operations
from underdraw.checks import shown
from underdraw.controls.control import Call, Planned, Run
from underdraw.controls.steady import Steady
from underdraw.controls.strength import ALWAYS, Strength
from underdraw.controls.subject_overlay import LaidOver, laid_over, text_leaves
from underdraw.controls.subject_tokens import (
    embed,
    end_of,
    insert,
    need,
    numbers_of,
    place,
    put_in,
)
from underdraw.errors import InputError
from underdraw.networks.sites import NO_SITES, Sites
from underdraw.text.prompts import tokenize_prompts
from underdraw.text.words import Tokens, Words

if TYPE_CHECKING:  # which makes this of several
    from underdraw.controls.subject import Subject

MOST_SUBJECTS = 64
"""Of one call."""
APART = 2**16
"""Between the numbers of two subjects' tokens; more than a subject has."""


@dataclass(frozen=True, eq=False)
class Subjects(Steady):
    """The subjects of a run, which share the windows of its prompts."""

    parts: tuple[Subject, ...]
    among: tuple[int, ...] | None = None
    """Numbers of those that act; None: all."""
    made: tuple[Array, ...] = ()
    """Tokens of each, where they are known."""

    def __post_init__(self) -> None:
        if len(self.parts) > MOST_SUBJECTS:
            raise InputError(
                f"controls holds {len(self.parts)} subjects; allowed: at most {MOST_SUBJECTS}"
            )

    @property
    def acting(self) -> tuple[int, ...]:
        """Numbers of the subjects that are put into prompts."""
        return tuple(range(len(self.parts))) if self.among is None else self.among

    def room(self, components: Any, prompt: str, number: int) -> int:
        """Tokens of the subjects that are for the prompt, and whose words it has."""
        if components is None:
            raise InputError("Subject: it acts in a pipeline alone, which has subject weights")
        tokenizer, total = components.tokenizer, 0
        plain = components.compat == "diffusers"
        ids, _ = tokenize_prompts(tokenizer, [prompt], weighting=not plain)
        for part in (self.parts[which] for which in self.acting):
            count = need(components, part)
            if part.prompts is not None and number not in part.prompts:
                continue
            if part.at is not None or any(place(tokenizer, part, one) for one in ids[0]):
                total += count
        return total

    def placed(self, components: Any, tokens: Tokens) -> Tokens:
        """The numbers of the tokens of each subject, before its words."""
        ids = tokens.ids.copy()
        for text, window, at, number in self._places(tokens):
            count = need(components, self.parts[number])
            new = numbers_of(count, number * APART)
            said = tokens.texts[text]
            ids[text, window] = put_in(tokens.tokenizer, said, ids[text, window], at, new)
        return replace(tokens, ids=ids)

    def words(self, nn: Operations, words: Words) -> Words:
        """The tokens of each subject, before its words, and what it lays over the text encoder."""
        places = self._places(words)
        made = self.made or self._embedded(words.components)
        for text, window, at, number in places:
            words = insert(nn, words, text, window, at, made[number], number * APART)
        there = {(text, number) for text, _, _, number in places}
        leaves = text_leaves(words, self.parts, there)
        return replace(words, leaves=leaves) if leaves else words

    def _places(self, words: Words | Tokens) -> list[tuple[int, int, int, int]]:
        """Text, window and position of each subject, and its number; those of a window from the
        last to the first, so that positions hold."""
        self._check_prompts(words)
        rows: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for number in self.acting:
            self._find(words, number, rows)
        return [
            (text, window, at, number)
            for (text, window), found in rows.items()
            for at, number in sorted(found, reverse=True)
        ]

    def _embedded(self, components: Any) -> tuple[Array, ...]:
        return embed(components, self.parts)

    def _check_prompts(self, words: Words | Tokens) -> None:
        for part in self.parts:
            for number in part.prompts or ():
                if number >= words.prompts:
                    raise InputError(
                        f"Subject(prompts={shown(part.prompts)}): there is no prompt {number}; the "
                        f"call has {words.prompts}, counted from 0"
                    )

    def _find(
        self, words: Words | Tokens, number: int, rows: dict[tuple[int, int], list[tuple[int, int]]]
    ) -> None:
        """Note where a subject stands, by text and window: `(position, subject)`."""
        part, somewhere = self.parts[number], False
        sooner = sum(1 for other in self.acting if other < number and _alike(self, other, number))
        chosen = range(words.prompts) if part.prompts is None else part.prompts
        for text in chosen:
            here = False
            for window, ids in enumerate(words.ids[text]):
                # Repeated windows of a shorter prompt are all alike.
                again = window == 0 or np.array_equal(ids, words.ids[text, 0])
                if part.at is None:
                    places = place(words.tokenizer, part, ids)
                elif again:
                    places = [min(part.at, end_of(words.tokenizer, ids))]
                else:
                    places = []
                if places:
                    here = True
                    at = places[min(sooner, len(places) - 1)]
                    rows.setdefault((text, window), []).append((at, number))
            if not here and part.prompts is not None:
                raise self._not_there(part, words.texts[text])
            somewhere = somewhere or here
        if not somewhere and words.prompts:
            raise self._not_there(part, words.texts[0], words.prompts - 1)

    @staticmethod
    def _not_there(part: Subject, prompt: str, others: int = 0) -> InputError:
        also = f", nor in {others} others" if others else ""
        return InputError(
            f"Subject(word={part.word!r:.60}): these words are not in prompt={prompt!r:.80}{also}; "
            "its tokens stand before them"
        )

    # -- over the run ------------------------------------------------------------------------------
    def check(self, planned: Planned) -> None:
        """That there are texts to act on."""
        if planned.ids is None:
            raise InputError(
                "Subject: the prompts were given as embeddings; it acts on texts alone. Encode "
                "them with it, or give prompt="
            )

    def prepare(self, run: Run) -> _Contexts | None:
        """The contexts without some of the subjects, where one of them is not always there, and
        what their weights lay over the UNet."""
        laid = laid_over(run, self.parts)
        strengths: Any = [part.strength for part in self.parts]
        if laid is None and all(strength == ALWAYS for strength in strengths):
            return None
        return _Contexts(run, self, strengths, laid)

    def sites_at(self, nn: Operations, carry: Any, like: Array, call: Call) -> Sites:
        """Another context where a subject does not act in full, and the differences of those that
        act."""
        if carry is None:
            return NO_SITES
        hook = carry.at(call, like.shape[0])
        leaves = {} if carry.laid is None else carry.laid.at(call)
        if hook is None and not leaves:
            return NO_SITES
        return Sites(context=() if hook is None else (hook,), leaves=leaves)


class _Contexts:
    """The contexts of a run with some of its subjects, made when they are first needed, and what
    of them each call sees."""

    def __init__(
        self,
        run: Run,
        whole: Subjects,
        strengths: Sequence[Strength],
        laid: LaidOver | None = None,
    ) -> None:
        everything = tuple(range(len(whole.parts)))
        self.strengths, self.laid = strengths, laid
        always = all(strength == ALWAYS for strength in strengths)
        known = whole if always else replace(whole, made=whole._embedded(run.components))
        self.by_set = {everything: run.conditioning.context}
        # All that will be asked for is made now: then text encoder and UNet need not take turns.
        for index in range(run.calls):
            call = Call(index, run.calls, 0.0, False)
            for acting, _ in self._layers(call):
                if acting not in self.by_set:
                    chosen = replace(known, among=acting)
                    self.by_set[acting] = run.encode(  # type: ignore[misc]
                        lambda control, chosen=chosen: (
                            chosen if isinstance(control, Subjects) else control
                        )
                    )

    def at(self, call: Call, images: int) -> Blended | None:
        """What acts on the context of a call; None where all subjects do."""
        layers = self._layers(call)
        if layers == [(tuple(range(len(self.strengths))), 1.0)]:
            return None
        arrays = tuple(self.by_set[acting] for acting, _ in layers)
        return Blended(arrays, tuple(share for _, share in layers))

    def _layers(self, call: Call) -> list[tuple[tuple[int, ...], float]]:
        """Sets of subjects and their shares, which add up to 1: a subject of strength s is in those
        that make up s of it. (The Lovasz extension of a function of sets.)"""
        now = [strength.at(call) for strength in self.strengths]
        levels = sorted({0.0, 1.0, *now})
        layers = []
        for low, high in pairwise(levels):
            acting = tuple(i for i, value in enumerate(now) if value >= high)
            layers.append((acting, high - low))
        return layers


@dataclass(frozen=True, eq=False)
class Blended:
    """The hook `context`: the conditional half is made of several contexts. Shorter ones are
    repeated, which attention to them does not notice."""

    contexts: tuple[Array, ...]
    """Each `(images, tokens, width)`."""
    shares: tuple[float, ...]

    def __call__(self, nn: Operations, context: Array) -> Array:
        images = self.contexts[0].shape[0]
        rest = context[: context.shape[0] - images]
        tokens = lcm(context.shape[1], *(one.shape[1] for one in self.contexts))

        def long(x: Array) -> Array:
            return x if x.shape[1] == tokens else nn.concat((x,) * (tokens // x.shape[1]), 1)

        made = None
        for one, share in zip(self.contexts, self.shares, strict=True):
            part = long(nn.cast(one, context)) * share
            made = part if made is None else made + part
        return nn.concat((long(rest), made), 0) if rest.shape[0] else made


def _alike(whole: Subjects, one: int, other: int) -> bool:
    """Whether two subjects stand before the same words."""
    a, b = whole.parts[one], whole.parts[other]
    return a.at is None and b.at is None and a.name.strip().lower() == b.name.strip().lower()
