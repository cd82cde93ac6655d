"""Whether a picture shows what its caption says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from underdraw.scenes import Caption

from .detector import Detection, Evaluator, load_evaluator
from .images import as_images, same_length
from .rates import Rate, as_json, table
from .staging import as_captions, real_renders


@dataclass(frozen=True)
class Judgement:
    """One picture against its caption.

    `found[i]` is the number of the detection that mention i was matched with, None where nothing
    in the picture has its colour and shape; no detection serves two mentions. `relations[i]` is
    True, False, or None where one of its two things was not found.
    """

    caption: Caption
    detections: tuple[Detection, ...]
    found: tuple[int | None, ...]
    relations: tuple[bool | None, ...]

    @property
    def all_found(self) -> bool:
        """Whether every thing that the caption mentions is there."""
        return None not in self.found

    @property
    def related(self) -> bool | None:
        """Whether all relations hold; None without relations, or where things are missing."""
        if not self.relations or None in self.relations:
            return None
        return all(self.relations)

    @property
    def right(self) -> bool:
        """Everything there and where it should be."""
        return self.all_found and self.related is not False

    def told(self, attribute: str) -> list[bool]:
        """For each mention that was found and says something of `attribute`: is that right?"""
        return [
            self.detections[place].shows(mention, attribute)
            for mention, place in zip(self.caption.mentions, self.found, strict=True)
            if place is not None and getattr(mention, attribute) is not None
        ]


def judge(caption: Caption, detections: Sequence[Detection]) -> Judgement:
    """The most favourable way to read the picture: matched so that as many mentions as possible
    find a thing of their colour and shape, then as many relations as possible hold, then as many
    sizes and materials as possible are right."""
    mentions, seen = caption.mentions, tuple(detections)
    fits = [[k for k, thing in enumerate(seen) if thing.is_kind(m)] for m in mentions]
    best: Judgement | None = None
    best_key: tuple[int, int, int] | None = None
    for found in product(*([*places, None] for places in fits)):
        used = [place for place in found if place is not None]
        if len(set(used)) != len(used):
            continue
        made = Judgement(caption, seen, found, _relations(caption, seen, found))
        told = sum(made.told("size")) + sum(made.told("material"))
        key = (len(used), sum(held is True for held in made.relations), told)
        if best_key is None or key > best_key:  # the first of equals: the surest detections
            best, best_key = made, key
    assert best is not None  # nothing found at all is always a way
    return best


def _relations(
    caption: Caption, seen: tuple[Detection, ...], found: tuple[int | None, ...]
) -> tuple[bool | None, ...]:
    held: list[bool | None] = []
    for relation in caption.relations:
        a, b = found[relation.first], found[relation.second]
        held.append(None if a is None or b is None else seen[a].stands(relation.kind, seen[b]))
    return tuple(held)


@dataclass(frozen=True)
class CaptionScores:
    """Over captions of one, two, three and four things: all of them there in colour and shape.

    `relation`: of the two-thing captions that state a relation and have both things right, those
    in which it holds. `any_relation`: the same for any number of things. `mention`: of all single
    mentions, those found. `material`, `size`: of the mentions found that state it. `number`:
    pictures that show as many things as the caption mentions. `whole`: everything that a caption
    says of things is right.
    """

    one: Rate
    two: Rate
    three: Rate
    four: Rate
    relation: Rate
    any_relation: Rate
    mention: Rate
    material: Rate
    size: Rate
    number: Rate
    whole: Rate

    @classmethod
    def of(cls, judgements: Sequence[Judgement]) -> CaptionScores:
        """The counts over `judgements`."""

        def things(count: int) -> Rate:
            return Rate.count(j.all_found for j in judgements if len(j.caption.mentions) == count)

        return cls(
            *(things(count) for count in (1, 2, 3, 4)),
            relation=Rate.count(
                j.related for j in judgements if len(j.caption.mentions) == 2 and j.all_found
            ),
            any_relation=Rate.count(j.related for j in judgements if j.all_found),
            mention=Rate.count(place is not None for j in judgements for place in j.found),
            material=Rate.count(told for j in judgements for told in j.told("material")),
            size=Rate.count(told for j in judgements for told in j.told("size")),
            number=Rate.count(len(j.detections) == len(j.found) for j in judgements),
            whole=Rate.count(
                j.right and all(j.told("material")) and all(j.told("size")) for j in judgements
            ),
        )


_ROWS = {
    "one": "one thing: colour and shape",
    "two": "two things: both right",
    "three": "three things: all right",
    "four": "four things: all right",
    "relation": "relation, of both right",
    "any_relation": "relation, any number of things",
    "mention": "colour and shape, each mention",
    "material": "material, where told and found",
    "size": "size, where told and found",
    "number": "number of things",
    "whole": "whole caption",
}


@dataclass(frozen=True)
class CaptionReport:
    """`scores` beside `upper_bound`, the same on real renders of the same captions."""

    scores: CaptionScores
    upper_bound: CaptionScores
    judgements: tuple[Judgement, ...]

    def table(self) -> str:
        """For people; rows without cases are left out."""
        rows = [
            (words, getattr(self.scores, name), getattr(self.upper_bound, name))
            for name, words in _ROWS.items()
            if getattr(self.upper_bound, name).of
        ]
        return table(rows, ("", "pictures", "upper bound (real renders)"))

    def to_json(self) -> dict[str, Any]:
        """Scores, bound, and per picture what was found; plain values."""
        pictures = [
            {
                "caption": j.caption.text,
                "right": j.right,
                "found": list(j.found),
                "relations": list(j.relations),
                "seen": [d.phrase() for d in j.detections],
            }
            for j in self.judgements
        ]
        return {
            "scores": as_json(self.scores),
            "upper_bound": as_json(self.upper_bound),
            "pictures": pictures,
        }


def score_captions(
    images: Any,
    captions: Sequence[Caption | str],
    *,
    evaluator: Evaluator | None = None,
    real_images: Any = None,
) -> CaptionReport:
    """Judge picture i by caption i.

    `images`: (n, height, width, 3) in [0, 1] or pictures, see `as_images`. `captions`: n of them,
    texts are parsed. `real_images` are real renders of the captions, for the upper bound; by
    default they are made (`real_renders`, about 10 ms each).

    Raises InputError (a ValueError) for empty or unequal lists, wrong shapes or values, and
    captions that cannot be read.
    """
    told = as_captions(captions)
    pictures = as_images(images)
    same_length(images=pictures, captions=told)
    evaluator = evaluator or load_evaluator()
    if real_images is None:
        real_images = real_renders(told)
    real = as_images(real_images, "real_images")
    same_length(real_images=real, captions=told)
    judged, bound = (
        tuple(judge(c, d) for c, d in zip(told, evaluator.detect(shown), strict=True))
        for shown in (pictures, real)
    )
    return CaptionReport(CaptionScores.of(judged), CaptionScores.of(bound), judged)
