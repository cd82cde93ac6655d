"""Pictures before and after a change of one attribute of one object."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from underdraw.errors import InputError

from . import vocabulary
from .captions import Caption, Mention, caption, describe, listed
from .layout import MIN_VISIBLE, fits, has_reserved_pair, pick, sample_scene, visible_fractions
from .render import render
from .stream import Sample
from .vocabulary import check_choice
from .world import Scene, SceneObject

PAIR_KINDS = ("colour", "shape", "removal", "addition")


@dataclass(frozen=True)
class Pair:
    """Two pictures that differ in one thing.

    `index` is the changed object's place in `before.scene.objects` (for "addition": in
    `after.scene.objects`, where it is the last). All else in the two scenes is equal; after a
    removal the objects behind `index` move up by one.

    `mask`: bool (height, width), `object_mask` and every other pixel that changes by more than one
    step of 8 bits: the object's shadow on the table and on other objects.
    `object_mask`: bool (height, width), the object itself, before or after, without its shadow.
    """

    kind: str
    index: int
    before: Sample
    after: Sample
    mask: np.ndarray
    object_mask: np.ndarray


def pair(
    rng: np.random.Generator,
    kind: str | None = None,
    height: int = 128,
    width: int = 128,
    *,
    count: int | None = None,
    split: str = "train",
) -> Pair:
    """A random pair of `kind` (one of PAIR_KINDS; None: any of them).

    `count` is the number of objects where there are more of them: 1 to 4, for removal and addition
    2 to 4. The two captions have one template, and name what changes. In the split "train" neither
    scene holds a reserved pair of objects, in "held_out" the fuller one does (see `layout`).
    """
    if kind is None:
        kind = pick(rng, PAIR_KINDS)
    check_choice("kind", kind, PAIR_KINDS)
    moves = kind in ("removal", "addition")
    if count is None:
        count = int(rng.integers(2 if moves else 1, 5))
    if moves and count == 1:
        raise InputError(f"count={count!r} with kind={kind!r}: at least 2 objects are needed")
    while True:
        first = sample_scene(rng, count, split)
        index = int(rng.integers(count))
        second = _changed(first, index, kind, rng)
        if second is not None and not (split == "train" and has_reserved_pair(second)):
            break
    if kind == "addition":
        # Built as a removal and told backwards, the added object last.
        objects = (*second.objects, first.objects[index])
        first, second, index = second, replace(first, objects=objects), len(objects) - 1
    texts = _captions(first, second, index, kind, rng)
    before = Sample(first, render(first, height, width), texts[0])
    after = Sample(second, render(second, height, width), texts[1])
    change = np.abs(before.rendering.image - after.rendering.image).max(axis=2)
    shown = np.zeros((height, width), bool)
    if kind != "addition":
        shown |= before.rendering.segmentation == index + 1
    if kind != "removal":
        shown |= after.rendering.segmentation == index + 1
    return Pair(kind, index, before, after, shown | (change > 1 / 255), shown)


def _changed(scene: Scene, index: int, kind: str, rng: np.random.Generator) -> Scene | None:
    """The scene after the change, or None where that change does not work here."""
    obj, rest = scene.objects[index], [o for k, o in enumerate(scene.objects) if k != index]
    if kind in ("removal", "addition"):
        return replace(scene, objects=tuple(rest))
    if kind == "colour":
        colours = [c for c in vocabulary.COLOURS if c != obj.colour]
        new = replace(obj, colour=pick(rng, colours))
    else:
        shape = pick(rng, [s for s in vocabulary.SHAPES if s != obj.shape])
        # Rings must show their hole.
        turned = float(np.clip(obj.rotation, -0.75, 0.75)) if shape == "torus" else obj.rotation
        new = replace(obj, shape=shape, rotation=turned)
        if not fits([*rest, new], scene.camera):
            return None
    if any((new.colour, new.shape) == (o.colour, o.shape) for o in rest):
        return None
    objects = (*scene.objects[:index], new, *scene.objects[index + 1 :])
    changed = replace(scene, objects=objects)
    return changed if min(visible_fractions(changed)) >= MIN_VISIBLE else None


def _captions(
    first: Scene, second: Scene, index: int, kind: str, rng: np.random.Generator
) -> tuple[Caption, Caption]:
    """Captions of both scenes from one stream of choices, which name what changes."""
    if kind == "addition":
        after, before = _captions(second, first, index, "removal", rng)
        return before, after
    for _ in range(30):
        seed = int(rng.integers(1 << 62))
        before = caption(first, np.random.default_rng(seed))
        if kind == "removal":
            if len(before.mentions) == len(first.objects):
                return before, _without(before, index)
            continue
        after = caption(second, np.random.default_rng(seed))
        if _names(before, index, kind) and _names(after, index, kind):
            old, new = getattr(first.objects[index], kind), getattr(second.objects[index], kind)
            if before.text.replace(f"an {old}", f"a {old}").replace(old, new) == (
                after.text.replace(f"an {new}", f"a {new}")
            ):
                return before, after
    return _listed(_mentions(first.objects)), _listed(_mentions(second.objects))


def _without(told: Caption, index: int) -> Caption:
    """The other objects of a caption in the words used there, without relations."""
    rest = [m for m in told.mentions if m.object is not None and m.object != index]
    moved = [replace(m, object=m.object - (m.object > index)) for m in rest if m.object is not None]
    return _listed(moved)


def _mentions(objects: tuple[SceneObject, ...]) -> list[Mention]:
    return [describe(obj, k) for k, obj in enumerate(objects)]


def _listed(mentions: list[Mention]) -> Caption:
    return Caption(listed([m.phrase() for m in mentions]), tuple(mentions))


def _names(told: Caption, index: int, attribute: str) -> bool:
    return any(m.object == index and getattr(m, attribute) for m in told.mentions)
