"""Layouts: what stands where in an example, and what becomes of it when a picture is cut."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from underdraw.errors import InputError
from underdraw.scenes import SceneObject
from underdraw.training.data import Examples, RenderedScenes

MOST = 30
"""Boxes of one picture (Li et al. 2023); of more, some are drawn at random."""
SMALLEST = 1 / 1024
"""Boxes that cover a smaller share of the picture are left out: less than a token sees."""
LEAST_LEFT = 0.3
"""Boxes of which cutting leaves a smaller share are left out: what is seen is something else."""


@dataclass(frozen=True)
class Layout:
    """Phrases with their boxes, float32 `(n, 4)`: (x_min, y_min, x_max, y_max) in [0, 1] of the
    picture's width and height."""

    phrases: tuple[str, ...]
    boxes: np.ndarray

    def __post_init__(self) -> None:
        if self.boxes.shape != (len(self.phrases), 4):
            raise InputError(
                f"Layout.boxes has shape {self.boxes.shape} for {len(self.phrases)} phrases; "
                f"({len(self.phrases)}, 4) is needed"
            )

    def __len__(self) -> int:
        return len(self.phrases)

    def keep(self, which: np.ndarray) -> Layout:
        """Only the boxes that `which` (indices or booleans) picks."""
        numbers = np.arange(len(self))[which]
        return Layout(tuple(self.phrases[int(i)] for i in numbers), self.boxes[numbers])

    def cut(self, window: tuple[float, float, float, float]) -> Layout:
        """The layout of the part `window` (x_min, y_min, x_max, y_max) of the picture.

        Boxes are clipped; those too small or mostly outside are left out (`SMALLEST`,
        `LEAST_LEFT`).
        """
        left, top, right, bottom = window
        if not (right > left and bottom > top):
            raise InputError(f"window={window!r} is not (x_min, y_min, x_max, y_max)")
        origin = np.array([left, top, left, top], np.float64)
        side = np.array([right - left, bottom - top] * 2, np.float64)
        moved = (self.boxes - origin) / side
        clipped = np.clip(moved, 0, 1)
        whole, seen = _areas(moved), _areas(clipped)
        kept = (seen >= SMALLEST) & (seen >= LEAST_LEFT * whole)
        return Layout(self.phrases, clipped.astype(np.float32)).keep(kept)

    def mirrored(self) -> Layout:
        """The layout of the picture seen in a mirror: left and right change places."""
        x0, y0, x1, y1 = self.boxes.T
        return Layout(self.phrases, np.stack([1 - x1, y0, 1 - x0, y1], 1).astype(np.float32))

    def at_most(self, count: int, rng: np.random.Generator) -> Layout:
        """All boxes, or `count` of them at random in their order."""
        if len(self) <= count:
            return self
        return self.keep(np.sort(rng.choice(len(self), count, replace=False)))


def _areas(boxes: np.ndarray) -> np.ndarray:
    return np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(1)


class GroundedExamples(Examples, Protocol):
    """Numbered images with captions, phrases and boxes.

    Where they also tell, as `most`, how many boxes any example has at most, all steps of a training
    have one shape.
    """

    def layouts(self, indices: np.ndarray, rng: np.random.Generator) -> list[Layout]:
        """What stands where in `images(indices)`, at most `MOST` boxes each; phrases may be others
        each time."""
        ...


class GroundedScenes(RenderedScenes):
    """Rendered scenes as `GroundedExamples`: every object in its box, named by a phrase that fits
    no other object of the scene, half of the time with all that can be said of it."""

    @cached_property
    def most(self) -> int:
        """The most objects of any scene."""
        return max(len(fact["boxes"]) for fact in self._facts)

    def layouts(self, indices: np.ndarray, rng: np.random.Generator) -> list[Layout]:
        found = []
        for index in indices:
            boxes = self.boxes(int(index))
            said = self.phrases(int(index), None if rng.random() < 0.5 else rng)
            found.append(Layout(said, boxes).keep(_areas(boxes) >= SMALLEST))
        return found

    def thing(self, index: int, box: np.ndarray) -> SceneObject:
        """What stands in a box of an example."""
        away = np.abs(self.boxes(index) - box).sum(1)
        return self.scene(index).objects[int(away.argmin())]
