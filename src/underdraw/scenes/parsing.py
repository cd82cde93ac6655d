"""Reading captions back: from text to what it states."""

from __future__ import annotations

import re
from itertools import pairwise

from underdraw.errors import InputError, InputTypeError

from .captions import ATTRIBUTES, Caption, Mention, Relation
from .vocabulary import COLOURS, FLOORS, LIGHTS, MATERIAL_WORDS, RELATIONS, SHAPES, SIZES, TEXTURES


def _one_of(name: str, words: tuple[str, ...], tail: str = "") -> str:
    return rf"(?:(?P<{name}>{'|'.join(words)}){tail} )?"


_MENTION = re.compile(
    r"\b(?P<article>a|an|one|the) "
    + _one_of("size", SIZES)
    + _one_of("before", tuple(MATERIAL_WORDS))
    + _one_of("colour", COLOURS, rf"(?: and (?P<second>{'|'.join(COLOURS)}))?")
    + _one_of("texture", TEXTURES)
    + _one_of("after", tuple(MATERIAL_WORDS))
    + rf"(?P<shape>{'|'.join(SHAPES)}|thing)\b"
)
_RELATION = re.compile(rf"\b(?:{'|'.join(RELATIONS)})\b")
_FLOOR = re.compile(rf"\bon an? ({'|'.join(FLOORS)}) floor\b")
_LIGHT = re.compile(rf"\bin ({'|'.join(LIGHTS)}) light\b")
_FILLERS = frozenset(
    "a an the one and with is to of on in there picture photo from left right table empty".split()
)


def words() -> tuple[str, ...]:
    """Every word that a caption can contain, sorted."""
    known = {word for relation in RELATIONS for word in relation.split()} | {"thing"}
    known |= {"floor", "light", *_FILLERS, *MATERIAL_WORDS}
    return tuple(sorted(known.union(SHAPES, COLOURS, SIZES, TEXTURES, FLOORS, LIGHTS)))


def parse(text: str) -> Caption:
    """What a caption states; `Mention.object` is None, for text knows no scene.

    Understands all that `caption` writes, and the like: "a red cube", "a red sphere to the left of
    a blue cube, and a cone", "..., the cone is behind the cube". Letter case, commas and full
    stops do not matter. A "the ..." is the first earlier mention that it fits, otherwise a new one.
    Raises InputError (a ValueError) naming words outside the vocabulary.
    """
    if not isinstance(text, str):
        raise InputTypeError(f"text={text!r} is a {type(text).__name__}; a string is needed")
    plain = " ".join(re.sub(r"[,.;:!]", " ", text.lower()).split())
    unknown = sorted(set(plain.split()) - set(words()))
    if unknown:
        raise InputError(
            f"text={text!r} has words outside the vocabulary of the scenes: {', '.join(unknown)}"
        )
    found = list(_MENTION.finditer(plain))
    mentions: list[Mention] = []
    places: list[int] = []  # for each phrase found, the number of its mention
    for match in found:
        said = _mention(match)
        earlier = _resolve(said, mentions) if match["article"] == "the" else None
        if earlier is None:
            mentions.append(said)
        places.append(len(mentions) - 1 if earlier is None else earlier)
    relations = [
        Relation(a, kind[0], b)
        for (first, a), (second, b) in pairwise(zip(found, places, strict=True))
        if (kind := _RELATION.search(plain, first.end(), second.start()))
    ]
    if "from left to right" in plain:
        relations = [Relation(k, "left of", k + 1) for k in range(len(mentions) - 1)]
    floor, light = _FLOOR.search(plain), _LIGHT.search(plain)
    return Caption(
        text,
        tuple(mentions),
        tuple(relations),
        floor[1] if floor else None,
        light[1] if light else None,
    )


def _mention(match: re.Match[str]) -> Mention:
    material = match["before"] or match["after"]
    return Mention(
        None,
        match["size"],
        match["colour"],
        match["second"],
        match["texture"],
        MATERIAL_WORDS[material] if material else None,
        None if match["shape"] == "thing" else match["shape"],
    )


def _resolve(said: Mention, mentions: list[Mention]) -> int | None:
    """The number of the earlier mention that "the ..." means, None when it is a new thing."""
    for number, earlier in enumerate(mentions):
        told = [name for name in ATTRIBUTES if getattr(said, name) is not None]
        if all(getattr(said, name) == getattr(earlier, name) for name in told):
            return number
    return None
