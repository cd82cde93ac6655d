"""Things with textures of their own, each alone and in a scene, to train a subject encoder on."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from underdraw.errors import InputError, NotFoundError
from underdraw.formats import json_text
from underdraw.formats.arrays import read_array
from underdraw.scenes import (
    Scene,
    SceneObject,
    named_plainly,
    render,
    sample_subject,
    scene_rng,
    subject_phrase,
    subject_scene,
    subject_view,
    vocabulary,
)
from underdraw.scenes.stream import in_order
from underdraw.training.data import CELL, LIMITS, owners, scene_from, to_signed
from underdraw.weights.atomic import writing_folder
from underdraw.weights.replacing import settle

SHARD = 1024
LARGE = 0.8
"""Of the subjects; of the pattern of a small one an autoencoder of factor 8 keeps next to
nothing."""
COUNTS = (1, 1, 2, 1, 1, 3, 2, 1, 1, 2)
"""Things in scenes i, i + 1, ... in turn, the subject among them."""
TRUTH = (
    len(vocabulary.SHAPES) + 1,
    len(vocabulary.COLOURS),
    len(vocabulary.COLOURS) + 1,
    len(vocabulary.TEXTURES) + 1,
)
"""How many answers each question of `SubjectScenes.truth` has."""


def render_subjects(
    folder: str | Path,
    count: int,
    *,
    seed: int = 20251120,
    size: int = 128,
    workers: int = 1,
    progress: bool | None = False,
) -> None:
    """Render `count` random subjects, each alone and in a scene, into shards of `SHARD`; finished
    ones are kept. No two subjects are the same.

    A shard is `NNN/scenes.npy` and `views.npy`, uint8 `(SHARD, size, size, 3)`; `masks.npy` and
    `view_masks.npy`, uint8 `(SHARD, size, size)`, 1 where the subject is seen; `cells.npy`, as in
    `render_cache`; and `facts.json`. About 20 ms per subject of 128 x 128 and worker.
    """
    folder = Path(folder)
    shards = [range(s, min(s + SHARD, count)) for s in range(0, count, SHARD)]
    places = {folder / f"{number:03d}": indices for number, indices in enumerate(shards)}
    missing = {p: indices for p, indices in places.items() if not (p / "facts.json").exists()}
    bar = tqdm(total=count, unit="subject", disable=None if progress is None else not progress)
    numbers = [i for indices in missing.values() for i in indices]
    with bar, closing(in_order(partial(_draw, seed, size), numbers, workers)) as drawn:
        bar.update(count - len(numbers))
        for place, indices in missing.items():
            made: dict[str, list[np.ndarray]] = {}
            facts = []
            for arrays, fact in islice(drawn, len(indices)):
                for name, array in arrays.items():
                    made.setdefault(name, []).append(array)
                facts.append(fact)
                bar.update()
            with writing_folder(place) as new:
                for name, arrays in made.items():
                    np.save(new / f"{name}.npy", np.stack(arrays))
                (new / "facts.json").write_text(json.dumps(facts))


def _draw(seed: int, size: int, index: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    rng = scene_rng(seed, index)
    subject = replace(sample_subject(rng), size="large" if rng.random() < LARGE else "small")
    view = render(subject_view(subject, rng), size, size)
    scene = subject_scene(subject, rng, COUNTS[index % len(COUNTS)])
    seen = render(scene, size, size)
    arrays = {
        "scenes": _bytes(seen.image),
        "masks": (seen.segmentation == 1).astype(np.uint8),
        "views": _bytes(view.image),
        "view_masks": (view.segmentation == 1).astype(np.uint8),
        "cells": owners(seen.segmentation, CELL),
    }
    return arrays, {"scene": asdict(scene)}


def _bytes(image: np.ndarray) -> np.ndarray:
    return np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)


class SubjectScenes:
    """The subjects in a folder written by `render_subjects`, without the first `held_back`."""

    def __init__(self, folder: str | Path, held_back: int = 64) -> None:
        settle(Path(folder))
        places = sorted(Path(folder).glob("[0-9][0-9][0-9]"))
        if not places:
            raise NotFoundError(f"{folder} holds no subjects; make them with render_subjects")
        names = ("scenes", "masks", "views", "view_masks", "cells")
        self._arrays = {
            name: [read_array(place / f"{name}.npy") for place in places] for name in names
        }
        self._starts = np.cumsum([0, *map(len, self._arrays["scenes"])])
        self._facts = [
            f for place in places for f in json_text.read_list(place / "facts.json", LIMITS)
        ]
        if not all(isinstance(f, dict) and "scene" in f for f in self._facts):
            raise InputError(f"{folder} holds a facts.json without scenes; render it anew")
        self.held_back = held_back
        if len(self._facts) <= held_back:
            raise InputError(
                f"{folder} holds {len(self._facts)} subjects; {held_back} are held back"
            )

    def __len__(self) -> int:
        return len(self._facts) - self.held_back

    def _one(self, name: str, index: int) -> np.ndarray:
        i = int(index) + self.held_back
        shard = int(np.searchsorted(self._starts, i, "right")) - 1
        return self._arrays[name][shard][i - self._starts[shard]]

    def pixels(self, indices: np.ndarray) -> np.ndarray:
        """The scenes as stored, uint8 `(n, height, width, 3)`."""
        return np.stack([self._one("scenes", i) for i in indices])

    def images(self, indices: np.ndarray) -> Tensor:
        """The scenes in [-1, 1], float32 `(n, 3, height, width)`."""
        return to_signed(self.pixels(indices))

    def captions(self, indices: np.ndarray, rng: np.random.Generator) -> list[str]:
        """A caption of each scene that names the subject by its category alone."""
        return [named_plainly(self.scene(int(i)), rng) for i in indices]

    def scene(self, index: int) -> Scene:
        """The scene; its first object is the subject."""
        return scene_from(self._facts[int(index) + self.held_back]["scene"])

    def category(self, index: int) -> str:
        """What the subject is, in a word."""
        return self._facts[int(index) + self.held_back]["scene"]["objects"][0]["shape"]

    def described(self, index: int, rng: np.random.Generator) -> str:
        """What can be said of the subject."""
        return subject_phrase(self.scene(index).objects[0], rng)

    def shown(
        self,
        index: int,
        rng: np.random.Generator,
        size: int,
        own: float = 0.3,
        background: float = 0.6,
    ) -> Tensor:
        """A picture of the subject in [-1, 1], `(1, 3, size, size)`.

        It is the subject alone, or with probability `own` cut out of the scene itself; what is
        around it is exchanged with probability `background` for a part of another scene or a
        colour, so that an encoder does not learn to tell backgrounds (Li et al. 2023, 3.3).
        """
        kind = ("scenes", "masks") if rng.random() < own else ("views", "view_masks")
        picture, mask = (self._one(name, index) for name in kind)
        if mask.sum() < 0.01 * mask.size:
            picture, mask = (self._one(name, index) for name in ("views", "view_masks"))
        margin = float(rng.uniform(1.1, 1.7))
        left, top, side = _square(mask, margin)
        window = np.s_[top : top + side, left : left + side]
        cut, inside = picture[window], mask[window]
        if rng.random() < background:
            cut = np.where(inside[..., None] > 0, cut, self._background(side, rng))
        made = to_signed(np.ascontiguousarray(cut)[None])
        return F.interpolate(made, (size, size), mode="bilinear", antialias=True)

    def _background(self, side: int, rng: np.random.Generator) -> np.ndarray:
        """`(side, side, 3)`: another scene, turned any way, or one colour."""
        if rng.random() < 0.3:
            return np.broadcast_to(rng.integers(0, 256, 3).astype(np.uint8), (side, side, 3))
        other = self._one("scenes", int(rng.integers(len(self))))
        x, y = (int(rng.integers(0, length - side + 1)) for length in other.shape[1::-1])
        part = np.rot90(other[y : y + side, x : x + side], int(rng.integers(4)))
        return part[:, ::-1] if rng.random() < 0.5 else part

    def where(self, indices: np.ndarray, size: tuple[int, int]) -> Tensor:
        """How much of each cell the subject covers, float32 `(n, *size)` in [0, 1]."""
        masks = torch.from_numpy(np.stack([self._one("masks", i) for i in indices])).float()
        return F.adaptive_avg_pool2d(masks[:, None], size)[:, 0]

    def truth(self, indices: np.ndarray) -> np.ndarray:
        """What stands in each cell: int64 `(n, 4, rows, columns)`, the number of its shape (0 where
        nothing stands), of its colour, of its second one and of its pattern (0 for plain)."""
        answers = []
        for i in indices:
            table = [(0, 0, 0, 0), *(_answers(o) for o in self.scene(int(i)).objects)]
            answers.append(np.array(table)[self._one("cells", i)].transpose(2, 0, 1))
        return np.stack(answers)


class SubjectExamples:
    """The pictures of subjects as `Examples`: each in its scene, and alone."""

    def __init__(self, subjects: SubjectScenes) -> None:
        self.subjects = subjects

    def __len__(self) -> int:
        return 2 * len(self.subjects)

    def pixels(self, indices: np.ndarray) -> np.ndarray:
        """As stored, uint8 `(n, height, width, 3)`."""
        kinds = ("scenes", "views")
        return np.stack([self.subjects._one(kinds[i % 2], i // 2) for i in indices])

    def images(self, indices: np.ndarray) -> Tensor:
        """In [-1, 1], float32 `(n, 3, height, width)`."""
        return to_signed(self.pixels(indices))

    def captions(self, indices: np.ndarray, rng: np.random.Generator) -> list[str]:
        """The category of each subject."""
        return [self.subjects.category(i // 2) for i in indices]

    def shown(self) -> np.ndarray:
        """The scenes of those held back, uint8 `(n, height, width, 3)`."""
        return self.subjects.pixels(np.arange(-self.subjects.held_back, 0))


def _answers(thing: SceneObject) -> tuple[int, int, int, int]:
    colours = vocabulary.COLOURS
    first, second, pattern = colours.index(thing.colour), 0, 0
    if thing.texture is not None:
        # Which of two colours is the first nobody can see.
        first, other = sorted((first, colours.index(thing.texture.second)))
        second = other + 1
        pattern = vocabulary.TEXTURES.index(thing.texture.kind) + 1
    return vocabulary.SHAPES.index(thing.shape) + 1, first, second, pattern


def _square(mask: np.ndarray, margin: float) -> tuple[int, int, int]:
    """Left, top and side of the square around what a mask covers, `margin` times as wide and
    moved inside the picture."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    height, width = mask.shape
    ends = (columns[0], columns[-1] + 1), (rows[0], rows[-1] + 1)
    longest = max(high - low for low, high in ends)
    side = int(min(max(longest, 8) * margin, height, width))
    left, top = (
        int(np.clip((low + high - side) / 2, 0, limit - side))
        for (low, high), limit in zip(ends, (width, height), strict=True)
    )
    return left, top, side
