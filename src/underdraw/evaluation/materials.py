"""A judge of materials that the shipped evaluator has not met.

The evaluator finds things and says what they are; of a material it knows "rubber" and "metal" only.
What its network sees in a thing (the features before its answers) tells other materials apart,
too: a linear answer to these features is fitted here, on renders of seeds of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from underdraw import scenes
from underdraw.errors import InputError
from underdraw.pictures.writing import to_bytes
from underdraw.scenes.vocabulary import MATERIALS, UNSEEN_MATERIALS, check_choice

from .boxes import box_iou
from .detector import SIDE, Detection, Evaluator, load_evaluator
from .images import as_images
from .network import STRIDE

SEED = 83_401_117
SCENES = 360
RIDGE = 3.0
SAME = 0.5
"""Overlap from which on a thing that was found is the one that was drawn."""


class MaterialEvaluator(Evaluator):
    """The evaluator, whose `Detection.material` is one of `materials`.

    Args:
        materials: at least two of those of scenes.
        count: of scenes that it is fitted on.

    Raises:
        InputError: a material is not known, or there are not two.
    """

    def __init__(
        self, materials: Sequence[str], evaluator: Evaluator | None = None, count: int = SCENES
    ) -> None:
        evaluator = evaluator or load_evaluator()
        super().__init__(evaluator.network, evaluator.threshold)
        self.materials = tuple(materials)
        for one in self.materials:
            check_choice("materials", one, MATERIALS + UNSEEN_MATERIALS)
        if len(set(self.materials)) < 2:
            raise InputError(f"materials={self.materials} are not two different ones")
        self.answer = self._fitted(count)

    def detect(self, images: Any, batch: int = 32) -> list[tuple[Detection, ...]]:
        told: list[tuple[Detection, ...]] = []
        for things, features in self._seen(as_images(images), batch):
            chosen = (features @ self.answer).argmax(1)
            named = zip(things, chosen, strict=True)
            told.append(tuple(replace(one, material=self.materials[k]) for one, k in named))
        return told

    def _seen(self, pictures: np.ndarray, batch: int) -> Iterator[tuple[Any, np.ndarray]]:
        """For each picture the things in it, and what the network sees of each, `(things,
        features)`: in the upper third of its box, in the rest of it, and a one."""
        seen: list[Any] = []
        hook = self.network.merge.register_forward_hook(lambda *told: seen.append(told[-1]))
        try:
            found = super().detect(pictures, batch)
        finally:
            hook.remove()
        sides = np.array(pictures.shape[1:3]) * SIDE / min(pictures.shape[1:3]) / STRIDE
        maps = np.concatenate([one.numpy() for one in seen])
        for things, own in zip(found, maps, strict=True):
            rows = [_parts(own, thing, sides) for thing in things]
            yield things, np.array(rows).reshape(len(rows), 2 * own.shape[0] + 1)

    def _fitted(self, count: int) -> np.ndarray:
        """Weights `(features, materials)`: ridge regression to which material it is."""
        drawn, answers = [], []
        for index in range(count):
            rng = scenes.scene_rng(SEED, index)
            scene = scenes.sample_scene(rng, 1 + index % 2)
            own = rng.integers(len(self.materials), size=len(scene.objects)).tolist()
            things = tuple(
                replace(obj, material=self.materials[k])
                for obj, k in zip(scene.objects, own, strict=True)
            )
            drawn.append(scenes.render(replace(scene, objects=things)))
            answers.append(own)
        pictures = to_bytes(np.stack([one.image for one in drawn]))
        rows, right = [], []
        for (things, features), made, own in zip(
            self._seen(as_images(pictures), 32), drawn, answers, strict=True
        ):
            overlaps = box_iou(made.boxes, [one.box for one in things]) if things else []
            for found, material in zip(overlaps, own, strict=bool(things)):
                if found.max() > SAME:
                    rows.append(features[int(found.argmax())])
                    right.append(material)
        x, y = np.stack(rows), np.eye(len(self.materials))[right]
        return np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ y)


def _parts(maps: np.ndarray, thing: Detection, sides: np.ndarray) -> np.ndarray:
    """Means of maps `(channels, rows, columns)` over the upper third of a thing's box and over the
    rest; the picture has `sides` rows and columns of them."""
    left, top, right, bottom = thing.box
    x0, x1 = _cells(left * sides[1], right * sides[1], maps.shape[2])
    parts = []
    third = top + (bottom - top) / 3
    for low, high in ((top, third), (third, bottom)):
        y0, y1 = _cells(low * sides[0], high * sides[0], maps.shape[1])
        parts.append(maps[:, y0:y1, x0:x1].mean((1, 2)))
    return np.concatenate([*parts, [1.0]])


def _cells(low: float, high: float, most: int) -> tuple[int, int]:
    start = min(int(np.floor(low)), most - 1)
    return start, max(min(int(np.ceil(high)), most), start + 1)
