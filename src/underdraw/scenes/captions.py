"""Captions of scenes, with what they state in a form that a program can check."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from .relations import scene_relations
from .world import Scene, SceneObject

ATTRIBUTES = ("size", "colour", "second_colour", "texture", "material", "shape")
_MATERIAL_SYNONYM = {"rubber": "matte", "metal": "shiny"}


@dataclass(frozen=True)
class Mention:
    """What a caption says about one object; None where it says nothing.

    `object` is the index in `scene.objects`, None when read from text. `second_colour` and
    `texture` belong to subjects. `shape` None stands for "thing".
    """

    object: int | None = None
    size: str | None = None
    colour: str | None = None
    second_colour: str | None = None
    texture: str | None = None
    material: str | None = None
    shape: str | None = None

    def matches(self, obj: SceneObject) -> bool:
        """Whether everything said here is true of `obj`."""
        truth = describe(obj)
        told = [name for name in ATTRIBUTES if getattr(self, name) is not None]
        return all(getattr(self, name) == getattr(truth, name) for name in told)

    def phrase(self, article: str = "a", material_word: str | None = None) -> str:
        """The words, such as "a large red metal sphere"; "a" becomes "an" where needed."""
        colour = self.colour
        if colour and self.second_colour:
            colour = f"{colour} and {self.second_colour}"
        noun = self.shape or "thing"
        if material_word in ("shiny", "matte"):
            words = (self.size, material_word, colour, self.texture, noun)
        else:
            words = (self.size, colour, self.texture, material_word or self.material, noun)
        text = " ".join(word for word in words if word)
        return f"{'an' if article == 'a' and text[0] in 'aeiou' else article} {text}"


@dataclass(frozen=True)
class Relation:
    """Mention number `first` is `kind` (one of RELATIONS) mention number `second`."""

    first: int
    kind: str
    second: int


@dataclass(frozen=True)
class Caption:
    """A lower-case text and what it states."""

    text: str
    mentions: tuple[Mention, ...]
    relations: tuple[Relation, ...] = ()
    floor: str | None = None
    light: str | None = None


def describe(obj: SceneObject, index: int | None = None) -> Mention:
    """Everything that can be said about an object."""
    texture = obj.texture
    return Mention(
        index,
        obj.size,
        obj.colour,
        texture.second if texture else None,
        texture.kind if texture else None,
        obj.material,
        obj.shape,
    )


def phrases(scene: Scene, rng: np.random.Generator | None = None) -> tuple[str, ...]:
    """One phrase per object, such as "a large red metal sphere".

    With `rng` some attributes are left out at random; the phrase still fits one object only.
    """
    if rng is None:
        return tuple(describe(obj).phrase() for obj in scene.objects)
    return tuple(
        _mention(scene, i, rng).phrase(material_word=_material_word(scene.objects[i], rng))
        for i in range(len(scene.objects))
    )


def caption(scene: Scene, rng: np.random.Generator) -> Caption:
    """A caption from varied templates; what it says is true and fits no other object.

    All objects are mentioned, except that one in sixteen captions of three or four objects names
    only two. A relation is stated only where it holds by a clear margin (`scene_relations`).
    An empty scene is "an empty table".
    """
    count = len(scene.objects)
    if count == 0:
        return Caption("an empty table", ())
    chosen = [int(i) for i in rng.permutation(count)]
    if count > 2 and rng.random() < 1 / 16:
        chosen = chosen[:2]
    mentions = [_mention(scene, i, rng) for i in chosen]
    texts = [_text(m, scene, rng) for m in mentions]
    if len(chosen) == 1:
        made = Caption(texts[0], tuple(mentions))
    elif len(chosen) == 2:
        made = _two(scene, mentions, texts, rng)
    else:
        made = _several(scene, mentions, texts, rng)
    return _surround(made, scene, rng)


def _two(
    scene: Scene, mentions: list[Mention], texts: list[str], rng: np.random.Generator
) -> Caption:
    kinds = _related(scene, mentions, 0, 1)
    if not kinds or rng.random() < 0.2:
        joint = " and " if rng.random() < 0.7 else " with "
        return Caption(joint.join(texts), tuple(mentions))
    kind = kinds[int(rng.integers(len(kinds)))]
    verb = " is" if rng.random() < 0.2 else ""
    text = f"{texts[0]}{verb} {_relation_words(kind, rng)} {texts[1]}"
    return Caption(text, tuple(mentions), (Relation(0, kind, 1),))


def _several(
    scene: Scene, mentions: list[Mention], texts: list[str], rng: np.random.Generator
) -> Caption:
    """A list, and then where two of the objects are, or the list from left to right."""
    order = sorted(range(len(mentions)), key=lambda k: _across(scene, mentions[k]))
    steps = list(pairwise(order))
    in_a_row = all("left of" in _related(scene, mentions, a, b) for a, b in steps)
    if in_a_row and rng.random() < 0.35:
        mentions, texts = [mentions[k] for k in order], [texts[k] for k in order]
        row = tuple(Relation(k, "left of", k + 1) for k in range(len(mentions) - 1))
        if rng.random() < 0.5:
            return Caption(f"from left to right {listed(texts)}", tuple(mentions), row)
        return Caption(f"{listed(texts)} from left to right", tuple(mentions), row)
    pairs = [(a, b) for a in range(len(mentions)) for b in range(len(mentions)) if a != b]
    pairs = [pair for pair in pairs if _related(scene, mentions, *pair)]
    if not pairs or rng.random() < 0.25:
        return Caption(listed(texts), tuple(mentions))
    a, b = pairs[int(rng.integers(len(pairs)))]
    kinds = _related(scene, mentions, a, b)
    kind = kinds[int(rng.integers(len(kinds)))]
    words = _relation_words(kind, rng)
    if rng.random() < 0.5:
        # "a red sphere left of a blue cube, and a green cone"
        rest = [k for k in range(len(mentions)) if k not in (a, b)]
        mentions = [mentions[k] for k in (a, b, *rest)]
        others = listed([texts[k] for k in rest])
        text = f"{texts[a]} {words} {texts[b]}, and {others}"
        return Caption(text, tuple(mentions), (Relation(0, kind, 1),))
    first, second = (mentions[k].phrase("the") for k in (a, b))
    text = f"{listed(texts)}, the {first[4:]} is {words} the {second[4:]}"
    return Caption(text, tuple(mentions), (Relation(a, kind, b),))


def _surround(made: Caption, scene: Scene, rng: np.random.Generator) -> Caption:
    """Now and then: an opening, the floor, the light."""
    text, draw = made.text, rng.random(3)
    if draw[0] < 0.12 and " is " not in text and not text.startswith("from"):
        text = f"{('a picture of', 'there is', 'a photo of')[int(rng.integers(3))]} {text}"
    if " is " in text or text.startswith("from"):
        return replace(made, text=text)
    if draw[1] < 0.2:
        made = replace(made, floor=scene.floor.kind)
        text = f"{text} on a {scene.floor.kind} floor"
    elif draw[1] < 0.27:
        text = f"{text} on the table"
    if draw[2] < 0.08 and scene.light.kind != "neutral":
        made = replace(made, light=scene.light.kind)
        text = f"{text} in {scene.light.kind} light"
    return replace(made, text=text)


def _mention(scene: Scene, index: int, rng: np.random.Generator) -> Mention:
    """A random choice of attributes that fits this object and no other of the scene."""
    obj = scene.objects[index]
    full, draw = describe(obj, index), rng.random(5)
    said = Mention(
        index,
        full.size if draw[0] < 0.42 else None,
        full.colour if draw[1] < 0.94 else None,
        None,
        full.texture if draw[2] < 0.9 else None,
        full.material if draw[3] < 0.38 else None,
        full.shape if draw[4] < 0.97 or draw[1] >= 0.94 else None,
    )
    if said.texture and said.colour:
        said = replace(said, second_colour=full.second_colour)
    others = [o for k, o in enumerate(scene.objects) if k != index]
    for name in ("colour", "shape", "texture", "size", "material"):
        if not any(said.matches(other) for other in others):
            break
        said = replace(said, **{name: getattr(full, name)})
    return said


def _text(mention: Mention, scene: Scene, rng: np.random.Generator) -> str:
    assert mention.object is not None  # made by _mention, which always sets it
    return mention.phrase(material_word=_material_word(scene.objects[mention.object], rng, mention))


def _material_word(
    obj: SceneObject, rng: np.random.Generator, mention: Mention | None = None
) -> str | None:
    other = rng.random() < 0.25  # always drawn, so that the stream does not depend on the mention
    if mention is None or mention.material is None:
        return None
    return _MATERIAL_SYNONYM.get(obj.material) if other else None


def _related(scene: Scene, mentions: list[Mention], a: int, b: int) -> tuple[str, ...]:
    first, second = mentions[a].object, mentions[b].object
    assert first is not None and second is not None
    return scene_relations(scene, first, second)


def _across(scene: Scene, mention: Mention) -> float:
    """Where the object is from left to right in the picture."""
    assert mention.object is not None
    x, y = scene.objects[mention.object].position
    return float(scene.camera.project(np.array([[x, y, 0.5]]), 1, 1)[0, 0])


def _relation_words(kind: str, rng: np.random.Generator) -> str:
    return f"to the {kind}" if kind in ("left of", "right of") and rng.random() < 0.3 else kind


def listed(texts: list[str]) -> str:
    """ "a, b and c"."""
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
