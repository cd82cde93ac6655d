"""Captions to judge a generator by, and real renders of any caption: the upper bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import permutations, product

import numpy as np

from underdraw import scenes
from underdraw.errors import InputError, InputTypeError
from underdraw.scenes import (
    Camera,
    Caption,
    Mention,
    Scene,
    SceneObject,
    Texture,
    scene_relations,
    vocabulary,
)
from underdraw.scenes.captions import ATTRIBUTES
from underdraw.scenes.layout import (
    fits,
    pick,
    place,
    sample_camera,
    sample_floor,
    sample_light,
    sample_rotation,
)
from underdraw.scenes.world import MAX_OBJECTS

SEED = 60_211_023
# Of 128 captions: objects -> how many. Two objects have the most, for relations are judged there.
MIX: dict[int, int] = {1: 40, 2: 56, 3: 16, 4: 16}
_ATTEMPTS = 8000


def as_caption(caption: Caption | str) -> Caption:
    """The caption itself, or what its text states; see `scenes.parse` for what that raises."""
    if isinstance(caption, Caption):
        return caption
    if not isinstance(caption, str):
        raise InputTypeError(f"caption={caption!r} is not a Caption or a string")
    return scenes.parse(caption)


def as_captions(captions: Sequence[Caption | str]) -> list[Caption]:
    """All of them by `as_caption`; raises InputError for none."""
    if isinstance(captions, str):
        raise InputTypeError(f"captions={captions!r} is one string; a list is needed")
    made = [as_caption(caption) for caption in captions]
    if not made:
        raise InputError("captions is empty; at least one is needed")
    return made


def held_out_captions(
    count: int = 128, seed: int = SEED, mix: Mapping[int, int] | None = None
) -> list[Caption]:
    """Captions of scenes of the split "held_out", the same for the same arguments.

    `mix` gives the share of each number of objects (default: 40 of one, 56 of two, 16 of three and
    16 of four in 128). Every caption names all objects of its scene, all texts differ, and those
    of two objects always state a relation. Raises InputError for counts that cannot be.
    """
    shares = dict(MIX if mix is None else mix)
    if not isinstance(count, int) or count < 1:
        raise InputError(f"count={count!r} is not an integer of at least 1")
    if not shares or min(shares.values()) < 0 or sum(shares.values()) <= 0:
        raise InputError(f"mix={mix!r} holds no positive share")
    if not set(shares) <= set(range(1, MAX_OBJECTS + 1)):
        raise InputError(f"mix={mix!r} has numbers of objects that are not 1 to {MAX_OBJECTS}")
    total, made = sum(shares.values()), []
    reached = 0.0
    texts: set[str] = set()
    for objects, share in sorted(shares.items()):
        reached += share
        wanted = round(count * reached / total) - len(made)
        index = 0
        while wanted:
            rng = scenes.scene_rng(seed + objects, index, "held_out")
            scene = scenes.sample_scene(rng, objects, "held_out")
            told = scenes.caption(scene, rng)
            index += 1
            complete = len(told.mentions) == objects and (objects != 2 or told.relations)
            if complete and told.text not in texts:
                texts.add(told.text)
                made.append(told)
                wanted -= 1
    return made


def stage(caption: Caption | str, rng: np.random.Generator) -> Scene:
    """A random scene that a caption describes: the things it mentions and no others, no mention
    fitting another thing than its own (unless that is told as much), all relations clear, on the
    floor and in the light it names.

    `scene.objects` are in the order of the mentions. Raises InputError where no such scene was
    found: more than four things, relations that contradict each other, too many large things.
    """
    told = as_caption(caption)
    if len(told.mentions) > MAX_OBJECTS:
        raise InputError(f"caption={told.text!r} has more than {MAX_OBJECTS} things")
    floor, light = sample_floor(rng), sample_light(rng)
    floor = replace(floor, kind=told.floor) if told.floor else floor
    light = replace(light, kind=told.light) if told.light else light
    for _ in range(_ATTEMPTS):
        objects = [_thing(mention, rng) for mention in told.mentions]
        if _confused(told.mentions, objects):
            continue
        camera = sample_camera(rng)
        placed = place(rng, objects, camera)
        if placed is None:
            continue
        # Things change places until relations hold, or nearly no row of four would come about.
        for order in permutations([obj.position for obj in placed]):
            moved = tuple(replace(o, position=p) for o, p in zip(placed, order, strict=True))
            scene = Scene(moved, floor, light, camera)
            held = all(r.kind in scene_relations(scene, r.first, r.second) for r in told.relations)
            if held and (moved == placed or _stands(moved, camera)):
                return scene
            if not told.relations:
                break
    raise InputError(f"caption={told.text!r}: no scene was found that it describes")


def real_renders(
    captions: Sequence[Caption | str],
    seeds: Sequence[int] | None = None,
    height: int = 128,
    width: int = 128,
) -> np.ndarray:
    """float32 (n, height, width, 3): a render of a scene that each caption describes.

    The perfect generator; one seed per picture (default 0, 1, ...).
    """
    told = as_captions(captions)
    numbers = list(range(len(told))) if seeds is None else list(seeds)
    if len(numbers) != len(told):
        raise InputError(f"seeds has {len(numbers)} entries for {len(told)} captions")
    scenes_made = [
        stage(caption, np.random.default_rng([SEED, seed]))
        for caption, seed in zip(told, numbers, strict=True)
    ]
    return np.stack([scenes.render(scene, height, width).image for scene in scenes_made])


def _confused(mentions: Sequence[Mention], objects: Sequence[SceneObject]) -> bool:
    """Whether a mention fits the object of another that does not say the same."""
    for (i, said), (k, obj) in product(enumerate(mentions), enumerate(objects)):
        if i == k or not said.matches(obj):
            continue
        names = [name for name in ATTRIBUTES if getattr(said, name) is not None]
        if any(getattr(mentions[k], name) != getattr(said, name) for name in names):
            return True
    return False


def _stands(objects: Sequence[SceneObject], camera: Camera) -> bool:
    """Whether none touches another, leaves the frame or is hidden too much."""
    return all(fits([*objects[:i], objects[i]], camera) for i in range(len(objects)))


def _thing(mention: Mention, rng: np.random.Generator) -> SceneObject:
    """What a mention leaves open is drawn."""
    shape = mention.shape or pick(rng, vocabulary.SHAPES)
    colour = mention.colour or pick(rng, vocabulary.COLOURS)
    texture = None
    if mention.texture or mention.second_colour:
        others = [c for c in vocabulary.COLOURS if c != colour]
        texture = Texture(
            mention.texture or pick(rng, vocabulary.TEXTURES),
            mention.second_colour or pick(rng, others),
            float(rng.uniform(1.2, 2.6)),
            int(rng.integers(1 << 30)),
        )
    return SceneObject(
        shape,
        colour,
        mention.material or pick(rng, vocabulary.MATERIALS),
        mention.size or ("large" if rng.random() < 0.58 else "small"),
        (0.0, 0.0),
        sample_rotation(rng, shape),
        texture,
    )
