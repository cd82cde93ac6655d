"""Captions of pictures of scenes, from what the evaluator sees in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from underdraw.scenes import Mention
from underdraw.scenes.captions import listed
from underdraw.scenes.vocabulary import RELATIONS

from .detector import Detection, Evaluator, load_evaluator


@dataclass(frozen=True)
class SceneCaptioner:
    """A captioner for automatic prompts: from a picture to "a red sphere left of a blue cube".

    It says colours and shapes, and as much more as tells the things apart; of two things also how
    they stand, where that is clear. Its words are those of the captions of `underdraw.scenes`.

    evaluator: None is the one that ships.
    margin: a relation is told where the feet are further apart than this share of the picture.
    """

    evaluator: Evaluator | None = None
    margin: float = 0.08

    def __call__(self, image: Any) -> str:
        """`image`: one picture, PIL or `(height, width, 3)` in [0, 1]."""
        evaluator = self.evaluator or load_evaluator()
        return self.words(evaluator.detect([image])[0])

    def words(self, things: Sequence[Detection]) -> str:
        """The caption of what was seen."""
        # From left to right, so that it does not depend on how sure the evaluator was.
        ordered = sorted(things, key=lambda thing: thing.foot)
        told = mentions(ordered)
        phrases = [mention.phrase() for mention in told]
        if not phrases:
            return "an empty table"
        if len(phrases) == 2:
            first, second = ordered
            for kind in RELATIONS:
                if first.stands(kind, second, self.margin):
                    return f"{phrases[0]} {kind} {phrases[1]}"
        return listed(phrases)


def mentions(things: Sequence[Detection]) -> list[Mention]:
    """What to say of each thing: colour and shape (of patterned ones both colours and the pattern),
    and of things that look alike in these also size and material."""
    whole = [
        Mention(
            None,
            thing.size,
            thing.colour,
            thing.second_colour,
            None if thing.texture == "plain" else thing.texture,
            thing.material,
            thing.shape,
        )
        for thing in things
    ]
    short = [replace(mention, size=None, material=None) for mention in whole]
    for name in ("size", "material"):
        alike = [short.count(mention) > 1 for mention in short]
        short = [
            replace(said, **{name: getattr(full, name)}) if same else said
            for said, full, same in zip(short, whole, alike, strict=True)
        ]
    return short
