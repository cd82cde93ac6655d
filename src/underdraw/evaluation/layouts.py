"""Held-out layouts to judge grounded generation by, with the scenes they were taken from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from underdraw import scenes
from underdraw.errors import InputError
from underdraw.pictures.writing import to_bytes
from underdraw.scenes import Mention, Scene
from underdraw.scenes.captions import listed
from underdraw.scenes.layout import sample_kinds
from underdraw.scenes.world import MAX_OBJECTS

from .boxes import Wanted, wanted_in
from .staging import as_caption

SEED = 60_211_027
_SMALLEST = 0.006  # share of the picture; of a smaller thing too little is seen to judge it


@dataclass(frozen=True)
class HeldOutLayout:
    """A prompt with boxes, and the scene that it was taken from.

    `boxes`, float32 (n, 4) in [0, 1], are to hold `things`. What is drawn by is beside them, one
    per box: `phrases`, or `images` that show the things, uint8 (128, 128, 3), or neither.
    """

    prompt: str
    boxes: np.ndarray
    things: tuple[Mention, ...]
    scene: Scene
    phrases: tuple[str, ...] = ()
    images: tuple[np.ndarray, ...] = ()

    @property
    def grounded(self) -> bool:
        """Whether there is anything to draw by but the prompt."""
        return bool(self.phrases or self.images)

    @property
    def wanted(self) -> tuple[Wanted, ...]:
        """What is to stand where."""
        return wanted_in(self.boxes, self.things)

    def prompt_only(self) -> HeldOutLayout:
        """The same prompt, judged by the same boxes, with nothing but the prompt to draw by."""
        return replace(self, phrases=(), images=())


@cache
def held_out_layouts(count: int = 128, seed: int = SEED) -> tuple[HeldOutLayout, ...]:
    """Layouts of scenes of the split "held_out", as many of one as of two, three and four boxes.

    The prompt is the scene's caption; phrases say of each thing what tells it from the others, and
    more, as captions do. The same for the same arguments.
    """
    made = []
    for number, scene in enumerate(_scenes(count, seed)):
        rng = scenes.scene_rng(seed + 1, number, "held_out")
        prompt, named = scenes.caption(scene, rng).text, scenes.phrases(scene, rng)
        things = tuple(as_caption(phrase).mentions[0] for phrase in named)
        made.append(HeldOutLayout(prompt, scenes.render(scene).boxes, things, scene, named))
    return tuple(made)


@cache
def held_out_subjects(count: int = 128, seed: int = SEED) -> tuple[HeldOutLayout, ...]:
    """The layouts of `held_out_layouts` told by pictures: each box has one of its thing, alone,
    from another side, on another floor and in another light.

    The prompt counts the things and says nothing of them ("a thing and a thing"). A thing is its
    colour and its shape.
    """
    made = []
    for number, layout in enumerate(held_out_layouts(count, seed)):
        rng = scenes.scene_rng(seed + 2, number, "held_out")
        things = tuple(Mention(None, colour=o.colour, shape=o.shape) for o in layout.scene.objects)
        prompt = listed(["a thing"] * len(things))
        views = tuple(_picture(scenes.alone(obj, rng)) for obj in layout.scene.objects)
        made.append(HeldOutLayout(prompt, layout.boxes, things, layout.scene, images=views))
    return tuple(made)


@dataclass(frozen=True)
class HeldOutHole:
    """A picture, uint8 (128, 128, 3), with one box to be filled: `layout` has that box alone."""

    layout: HeldOutLayout
    picture: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """bool (height, width): the pixels that the box touches."""
        height, width = self.picture.shape[:2]
        x0, y0, x1, y1 = self.layout.boxes[0] * [width, height, width, height]
        mask = np.zeros((height, width), bool)
        mask[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] = True
        return mask


@cache
def held_out_holes(count: int = 64, seed: int = SEED) -> tuple[HeldOutHole, ...]:
    """Renders of the scenes of `held_out_layouts`, where one thing is to make place for another of
    another colour and shape; the prompt and the phrase name the new one."""
    made = []
    for number, layout in enumerate(held_out_layouts(count, seed)):
        rng = scenes.scene_rng(seed + 3, number, "held_out")
        scene = layout.scene
        place = int(rng.integers(len(scene.objects)))
        there = {(o.colour, o.shape) for o in scene.objects}
        while True:
            (colour, shape), *_ = sample_kinds(rng, 1, "train")
            if all(colour != c and shape != s for c, s in there):
                break
        thing = Mention(None, colour=colour, shape=shape)
        one = layout.boxes[place : place + 1]
        new = HeldOutLayout(thing.phrase(), one, (thing,), scene, (thing.phrase(),))
        made.append(HeldOutHole(new, _picture(scene)))
    return tuple(made)


def _picture(scene: Scene) -> np.ndarray:
    return to_bytes(scenes.render(scene).image)


@cache
def _scenes(count: int, seed: int) -> tuple[Scene, ...]:
    if not isinstance(count, int) or count < 1:
        raise InputError(f"count={count!r} is not an integer of at least 1")
    made = []
    for number in range(count):
        rng, objects = scenes.scene_rng(seed, number, "held_out"), 1 + number % MAX_OBJECTS
        while True:
            scene = scenes.sample_scene(rng, objects, "held_out")
            boxes = scenes.render(scene, 64, 64).boxes
            if ((boxes[:, 2:] - boxes[:, :2]).prod(1) >= _SMALLEST).all():
                break
        made.append(scene)
    return tuple(made)
