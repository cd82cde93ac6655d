"""Random scenes, reproducible one by one, and the split that keeps some of them for evaluation.

Scene i of a seed has a random stream of its own, so it is the same alone, in any batch and in any
order. The split "train" never shows the two things of a *reserved pair* together: about one in
sixteen pairs of (colour, shape), chosen by a fixed hash (`is_reserved`). Scenes of the split
"held_out" have a stream of their own and, from two objects on, always show a reserved pair, so
that what is measured there cannot be remembered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, product
from zlib import crc32

import numpy as np

from underdraw.errors import InputError

from . import vocabulary
from .render import trace
from .solids import corners, footprint
from .vocabulary import check_choice
from .world import FOCAL, MAX_OBJECTS, Camera, Floor, Light, Scene, SceneObject

SPLITS = ("train", "held_out")
MIN_VISIBLE = 0.45  # the least part of its outline that an object of a sampled scene shows
_COUNT_CHANCES = (0.27, 0.35, 0.22, 0.16)
_MARGIN = 0.02  # objects keep this share of the frame away from its border
_GRID = 48  # samples across, enough to measure what part of an object is hidden


def scene_rng(seed: int, index: int, split: str = "train") -> np.random.Generator:
    """The random stream of scene `index` (>= 0) of `seed` (>= 0); splits never share one."""
    check_choice("split", split, SPLITS)
    for name, value in (("seed", seed), ("index", index)):
        if not isinstance(value, (int, np.integer)) or value < 0:
            raise InputError(f"{name}={value!r} is not a non-negative integer")
    return np.random.default_rng([int(seed), int(index), SPLITS.index(split)])


def scene_at(seed: int, index: int, count: int | None = None, split: str = "train") -> Scene:
    """Scene `index` of `seed`; `count` objects, or 1 to 4."""
    return sample_scene(scene_rng(seed, index, split), count, split)


def sample_scene(rng: np.random.Generator, count: int | None = None, split: str = "train") -> Scene:
    """A random scene whose objects all lie in the frame, do not touch, and can be recognised.

    No two objects share both colour and shape. Every object shows at least `MIN_VISIBLE` of its
    outline. Raises InputError for a count outside 1 to 4 or an unknown split.
    """
    check_choice("split", split, SPLITS)
    if count is None:
        count = int(rng.choice(MAX_OBJECTS, p=_COUNT_CHANCES)) + 1
    if not isinstance(count, (int, np.integer)) or not 1 <= count <= MAX_OBJECTS:
        raise InputError(f"count={count!r} is not an integer from 1 to {MAX_OBJECTS}")
    kinds = sample_kinds(rng, int(count), split)
    floor, light = sample_floor(rng), sample_light(rng)
    while True:
        camera = sample_camera(rng)
        objects = [
            SceneObject(
                shape,
                colour,
                pick(rng, vocabulary.MATERIALS),
                # Crowded tables that do not work out are drawn anew, mostly those with large
                # things on them; the odds make up for that.
                "large" if rng.random() < 0.58 else "small",
                (0.0, 0.0),
                sample_rotation(rng, shape),
            )
            for colour, shape in kinds
        ]
        placed = place(rng, objects, camera)
        if placed is not None:
            return Scene(placed, floor, light, camera)


def is_reserved(first: tuple[str, str], second: tuple[str, str]) -> bool:
    """Whether the pair of (colour, shape) `first` and `second` is kept out of the train split."""
    key = " ".join(" ".join(kind) for kind in sorted((first, second)))
    return crc32(key.encode()) % 16 == 0


def has_reserved_pair(scene: Scene) -> bool:
    """Whether two objects of the scene form a reserved pair."""
    kinds = [(obj.colour, obj.shape) for obj in scene.objects]
    return any(is_reserved(a, b) for a, b in combinations(kinds, 2))


def sample_kinds(
    rng: np.random.Generator, count: int, split: str, given: Sequence[tuple[str, str]] = ()
) -> list[tuple[str, str]]:
    """`count` distinct (colour, shape), those `given` first, that fit the split.

    Some kinds have no partner among the reserved pairs: such a one, given, goes with any other.
    """
    every = product(vocabulary.COLOURS, vocabulary.SHAPES)
    if count == 2 and given and not any(is_reserved(given[0], other) for other in every):
        split = "train"
    while True:
        kinds = list(given)
        while len(kinds) < count:
            kinds.append((pick(rng, vocabulary.COLOURS), pick(rng, vocabulary.SHAPES)))
        reserved = any(is_reserved(a, b) for a, b in combinations(kinds, 2))
        if len(set(kinds)) == count and (count == 1 or reserved == (split == "held_out")):
            return kinds


def sample_floor(rng: np.random.Generator) -> Floor:
    """A random table top."""
    kind = pick(rng, vocabulary.FLOORS)
    # Boards and stripes run towards the camera or across, tiles and checkers at any angle.
    angle = float(rng.uniform(-0.5, 0.5)) + (np.pi / 2 if rng.random() < 0.5 else 0.0)
    return Floor(kind, float(rng.uniform(0.1, 1)), angle, int(rng.integers(1000)))


def sample_light(rng: np.random.Generator) -> Light:
    """A random lamp, from the side or from the front."""
    azimuth = float(rng.uniform(0.35, 1.75)) * (1 if rng.random() < 0.5 else -1)
    elevation, softness = float(rng.uniform(0.68, 1.08)), float(rng.uniform(0.06, 0.2))
    return Light(pick(rng, vocabulary.LIGHTS), azimuth, elevation, softness)


def sample_camera(rng: np.random.Generator) -> Camera:
    """A random camera slightly above the table."""
    pitch, distance = float(rng.uniform(0.42, 0.56)), float(rng.uniform(8.6, 9.4))
    return Camera(pitch, distance, float(rng.uniform(-0.15, 0.15)))


def sample_rotation(rng: np.random.Generator, shape: str) -> float:
    """A random turn; a torus shows its hole."""
    return float(rng.uniform(-0.75, 0.75) if shape == "torus" else rng.uniform(-np.pi, np.pi))


def place(
    rng: np.random.Generator, objects: list[SceneObject], camera: Camera
) -> tuple[SceneObject, ...] | None:
    """The objects, in their order, at random places where they `fit`; None after many attempts."""
    placed: list[SceneObject] = []
    indices = sorted(range(len(objects)), key=lambda k: -footprint(objects[k]))
    for index in indices:  # the largest first: it finds its place while there is room
        for _ in range(15):
            moved = replace(objects[index], position=_somewhere(rng, objects[index], camera))
            if fits([*placed, moved], camera):
                placed.append(moved)
                break
        else:
            return None
    return tuple(placed[indices.index(k)] for k in range(len(objects)))


def _somewhere(rng: np.random.Generator, obj: SceneObject, camera: Camera) -> tuple[float, float]:
    """A place on the table, across only as far as the frame goes at that distance."""
    y = float(rng.uniform(-1.7, 1.8))
    half = (0.5 - _MARGIN) / FOCAL * (camera.distance + y * np.cos(camera.pitch))
    reach = max(float(half) - 0.9 * footprint(obj), 0.1)
    return camera.target_x + float(rng.uniform(-reach, reach)), y


def fits(objects: list[SceneObject], camera: Camera) -> bool:
    """Whether the last object is in the frame, apart from the others and hides none too much."""
    new, others = objects[-1], objects[:-1]
    for other in others:
        apart = math.dist(new.position, other.position)
        if apart < footprint(new) + footprint(other) + 0.08:
            return False
    low, high = _frame(new, camera)
    if low.min() < _MARGIN or high.max() > 1 - _MARGIN:
        return False
    frames = [_frame(other, camera) for other in others]
    overlap = any(((low < far) & (near < high)).all() for near, far in frames)
    return not overlap or min(visible_fractions(Scene(tuple(objects), camera=camera))) >= (
        MIN_VISIBLE + 0.05  # the coarse grid is off by a few per cent
    )


def visible_fractions(scene: Scene) -> list[float]:
    """What part of each object's outline is seen, measured on a coarse square grid."""
    samples = trace(scene, _GRID, _GRID, fine=1)
    seen = np.bincount(samples.ids.ravel(), minlength=len(scene.objects) + 1)[1:]
    return [float(a / max(b, 1)) for a, b in zip(seen, samples.outline, strict=True)]


def _frame(obj: SceneObject, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper corner of the object's outline in a square picture of side 1."""
    found = camera.project(corners(obj), 1, 1)
    return found.min(0), found.max(0)


def pick(rng: np.random.Generator, names: Sequence[str]) -> str:
    """One of `names`, all equally likely."""
    return names[int(rng.integers(len(names)))]
