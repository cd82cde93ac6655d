"""Subjects: things with a texture of their own, alone and among others; and plain things alone.

A subject is a `SceneObject` with a `texture`; where it stands is up to each picture.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from underdraw.errors import InputError

from . import vocabulary
from .captions import Mention, caption, listed
from .layout import (
    SPLITS,
    pick,
    place,
    sample_camera,
    sample_floor,
    sample_kinds,
    sample_light,
    sample_rotation,
)
from .vocabulary import check_choice
from .world import MAX_OBJECTS, Camera, Scene, SceneObject, Texture

# Colours that would melt into each other as two sides of one pattern.
_ALIKE = ({"red", "orange"}, {"orange", "yellow"}, {"cyan", "blue"}, {"blue", "purple"})


def sample_subject(rng: np.random.Generator) -> SceneObject:
    """A random thing with a random two-coloured texture, standing in the middle of the table."""
    colour = pick(rng, vocabulary.COLOURS)
    others = [c for c in vocabulary.COLOURS if c != colour and {c, colour} not in _ALIKE]
    texture = Texture(
        pick(rng, vocabulary.TEXTURES),
        pick(rng, others),
        float(rng.uniform(1.2, 2.6)),
        int(rng.integers(1 << 30)),
    )
    shape, material = pick(rng, vocabulary.SHAPES), pick(rng, vocabulary.MATERIALS)
    return SceneObject(shape, colour, material, pick(rng, vocabulary.SIZES), (0, 0), 0.0, texture)


def subject_view(subject: SceneObject, rng: np.random.Generator) -> Scene:
    """The subject alone, large in the frame, from a random side, height and light."""
    _check(subject)
    half = 0.75 if subject.shape == "torus" else 1.1
    turned = replace(subject, position=(0.0, 0.0), rotation=float(rng.uniform(-half, half)))
    distance = max(5.0, 6.6 * subject.radius) * float(rng.uniform(1, 1.2))
    camera = Camera(float(rng.uniform(0.3, 0.7)), distance, float(rng.uniform(-0.15, 0.15)))
    return Scene((turned,), sample_floor(rng), sample_light(rng), camera)


def alone(obj: SceneObject, rng: np.random.Generator) -> Scene:
    """The object by itself, large in the frame, from a random side, on a random floor."""
    turned = replace(obj, position=(0.0, 0.0), rotation=float(rng.uniform(-0.75, 0.75)))
    distance = max(5.0, 6.6 * obj.radius) * float(rng.uniform(1, 1.2))
    camera = Camera(float(rng.uniform(0.35, 0.6)), distance, float(rng.uniform(-0.15, 0.15)))
    return Scene((turned,), sample_floor(rng), sample_light(rng), camera)


def subject_scene(
    subject: SceneObject,
    rng: np.random.Generator,
    count: int | None = None,
    split: str = "train",
) -> Scene:
    """The subject as `objects[0]` of a scene of `count` (1 to 4) objects; the rest are plain.

    Raises InputError for an object without texture, a wrong count or an unknown split.
    """
    _check(subject)
    check_choice("split", split, SPLITS)
    if count is None:
        count = int(rng.integers(1, MAX_OBJECTS + 1))
    if not isinstance(count, (int, np.integer)) or not 1 <= count <= MAX_OBJECTS:
        raise InputError(f"count={count!r} is not an integer from 1 to {MAX_OBJECTS}")
    kinds = sample_kinds(rng, int(count), split, given=[(subject.colour, subject.shape)])
    floor, light = sample_floor(rng), sample_light(rng)
    while True:
        camera = sample_camera(rng)
        turned = float(rng.uniform(-0.75, 0.75))
        objects = [replace(subject, rotation=turned)]
        for colour, shape in kinds[1:]:
            material, size = pick(rng, vocabulary.MATERIALS), pick(rng, vocabulary.SIZES)
            turned = sample_rotation(rng, shape)
            objects.append(SceneObject(shape, colour, material, size, (0, 0), turned))
        placed = place(rng, objects, camera)
        if placed is not None:
            return Scene(placed, floor, light, camera)


def subject_phrase(subject: SceneObject, rng: np.random.Generator | None = None) -> str:
    """What can be said of a subject, "a red and blue striped cube"; with `rng` some of it is left
    out now and then, and the colours change places."""
    texture = _check(subject)
    colours = [subject.colour, texture.second]
    kind: str | None = texture.kind
    if rng is not None:
        draw = rng.random(2)
        colours = colours[::-1] if draw[0] < 0.5 else colours
        kind = None if draw[1] < 0.15 else kind
    said = Mention(None, None, colours[0], colours[1], kind, None, subject.shape)
    return said.phrase()


def named_plainly(scene: Scene, rng: np.random.Generator) -> str:
    """A caption of a scene that calls its first thing, the subject, by its shape alone: "a cube
    left of a green sphere". The rest of what is known of it is for its picture to tell."""
    shape = scene.objects[0].shape
    for _ in range(8):
        told = caption(scene, rng)
        mention = next((m for m in told.mentions if m.object == 0), None)
        if mention is None:
            continue
        for word in (None, *vocabulary.MATERIAL_WORDS):
            phrase = mention.phrase(material_word=word)
            if phrase in told.text:
                text = told.text.replace(phrase, f"a {shape}", 1)
                # Another thing of its shape would take its tokens, were it named before it; and
                # nothing more is to be said of it later on.
                first = text.index(f"a {shape}") == text.find(f" {shape}") - 1
                if first and phrase.partition(" ")[2] not in text:
                    return text
    others = (Mention(None, colour=o.colour, shape=o.shape).phrase() for o in scene.objects[1:])
    return listed([f"a {shape}", *others])


def _check(subject: SceneObject) -> Texture:
    if subject.texture is None:
        raise InputError(f"subject={subject!r} has no texture; `sample_subject` makes subjects")
    return subject.texture
