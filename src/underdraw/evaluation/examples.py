"""The evaluator's own renders: scenes with what a detector must say about each object.

They come from a seed that no training of the family uses, and from both splits, so that the
judge knows neither the generator's pictures nor a pair of things that the generator lacked.
"""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from underdraw import scenes
from underdraw.formats.arrays import read_arrays
from underdraw.scenes import vocabulary
from underdraw.scenes.layout import SPLITS
from underdraw.scenes.solids import centre
from underdraw.scenes.world import MAX_OBJECTS

SEED = 771_204_533
CHUNK = 500
_COUNTS = (1, 2, 3, 4, 2, 3, 1, 2, 3, 4, 1, 2)


@dataclass(frozen=True)
class Examples:
    """Pictures and truth; `objects` slots per picture, empty ones have size 0 boxes.

    `images`: uint8 (n, 128, 128, 3). `boxes`: float32 (n, objects, 4), x and y of the corners in
    [0, 1]. `feet`: float32 (n, objects, 2), where the middle of the object and its foot on the
    table are in the picture, hidden or not. `labels`: int8 (n, objects, 6), indices of shape,
    colour, second colour (-1 without), texture (0 without), material, size.
    """

    images: np.ndarray
    boxes: np.ndarray
    feet: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


def example_scene(seed: int, index: int) -> scenes.Scene:
    """Scene `index`: one in 40 empty, 6 in 40 with a subject, the rest plain, 1 to 4 objects."""
    place, split = index % 40, SPLITS[index // 40 % 2]
    rng = scenes.scene_rng(seed, index, split)
    if place == 0:
        return scenes.Scene((), *_surroundings(rng))
    count = _COUNTS[index % len(_COUNTS)]
    if place <= 6:
        # In "held_out" some subjects have no reserved partner; here any company will do.
        return scenes.subject_scene(scenes.sample_subject(rng), rng, count, "train")
    return scenes.sample_scene(rng, count, split)


def feet(scene: scenes.Scene, height: int = 128, width: int = 128) -> np.ndarray:
    """(objects, 2): middle across and foot down, in shares of width and height."""
    found = np.zeros((len(scene.objects), 2), np.float32)
    for i, obj in enumerate(scene.objects):
        points = np.array([centre(obj), [*obj.position, 0]], np.float32)
        seen = scene.camera.project(points, height, width)
        found[i] = seen[0, 0] / width, seen[1, 1] / height
    return found


def example_at(seed: int, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Image, boxes, feet and labels of one picture, as in `Examples`."""
    scene = example_scene(seed, index)
    truth = scenes.render(scene)
    boxes, stands = (np.zeros((MAX_OBJECTS, n), np.float32) for n in (4, 2))
    labels = np.full((MAX_OBJECTS, 6), -1, np.int8)
    count = len(scene.objects)
    if count:
        boxes[:count], stands[:count] = truth.boxes, feet(scene)
    for i, obj in enumerate(scene.objects):
        texture = obj.texture
        labels[i] = (
            vocabulary.SHAPES.index(obj.shape),
            vocabulary.COLOURS.index(obj.colour),
            vocabulary.COLOURS.index(texture.second) if texture else -1,
            1 + vocabulary.TEXTURES.index(texture.kind) if texture else 0,
            vocabulary.MATERIALS.index(obj.material),
            vocabulary.SIZES.index(obj.size),
        )
    image = np.round(np.clip(truth.image, 0, 1) * 255).astype(np.uint8)
    return image, boxes, stands, labels


def render_examples(
    folder: str | os.PathLike, count: int, seed: int = SEED, workers: int = 1
) -> Examples:
    """The first `count` pictures of `seed`, rendered into `folder` in chunks unless they are there.

    An interrupted run leaves whole chunks only and the next one goes on from them.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    chunks = range(-(-count // CHUNK))
    missing = [c for c in chunks if not _chunk_path(folder, seed, c).exists()]
    make = partial(_render_chunk, str(folder), seed)
    bar = tqdm(total=len(missing) * CHUNK, unit="scene", desc="rendering", disable=not missing)
    with bar:
        if workers == 1:
            for chunk in missing:
                make(chunk)
                bar.update(CHUNK)
        elif missing:
            with multiprocessing.get_context("spawn").Pool(workers) as pool:
                for _ in pool.imap(make, missing):
                    bar.update(CHUNK)
    return load_examples(folder, count, seed)


def load_examples(folder: str | os.PathLike, count: int, seed: int = SEED) -> Examples:
    """The first `count` pictures out of `folder`."""
    parts = []
    for chunk in range(-(-count // CHUNK)):
        parts.append(read_arrays(_chunk_path(Path(folder), seed, chunk)))
    names = [field.name for field in fields(Examples)]
    return Examples(*(np.concatenate([p[name] for p in parts])[:count] for name in names))


def _surroundings(rng: np.random.Generator) -> tuple[scenes.Floor, scenes.Light, scenes.Camera]:
    sampled = scenes.sample_scene(rng, 1)
    return sampled.floor, sampled.light, sampled.camera


def _chunk_path(folder: Path, seed: int, chunk: int) -> Path:
    return folder / f"{seed}_{chunk:04d}.npz"


def _render_chunk(folder: str, seed: int, chunk: int) -> None:
    made = [example_at(seed, chunk * CHUNK + k) for k in range(CHUNK)]
    names = [field.name for field in fields(Examples)]
    columns = zip(*made, strict=True)
    path = _chunk_path(Path(folder), seed, chunk)
    partial_path = path.with_suffix(f".{os.getpid()}.tmp")
    with open(partial_path, "wb") as file:
        arrays = {n: np.stack(c) for n, c in zip(names, columns, strict=True)}
        np.savez(file, **arrays)  # type: ignore[arg-type]
    os.replace(partial_path, path)
