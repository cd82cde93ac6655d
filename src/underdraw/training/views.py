"""Pictures of single things, each from a side of its own on a table of its own.

Who puts a picture in a box seldom has one cut out of the very picture that is to be drawn. Layers
that have only seen such cuts are lost with any other picture of the thing.
"""

from __future__ import annotations

import json
from collections import defaultdict
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from underdraw.errors import InputError, NotFoundError
from underdraw.formats import json_text
from underdraw.formats.arrays import read_array
from underdraw.scenes import Scene, SceneObject, alone, phrases, render, scene_rng, vocabulary
from underdraw.scenes.layout import pick
from underdraw.scenes.stream import in_order
from underdraw.training.data import LIMITS, to_signed
from underdraw.weights.save import writing_folder

Kind = tuple[str, str, str]
"""Shape, colour and material: what two pictures of a thing have in common, from any distance."""


def render_views(
    folder: str | Path,
    count: int,
    *,
    seed: int = 20251120,
    size: int = 128,
    workers: int = 1,
    progress: bool | None = False,
) -> None:
    """Render `count` random things, each alone; nothing is done where there are as many already.

    `images.npy`, uint8 `(count, size, size, 3)`, and `things.json`. About 6 ms each and worker.
    """
    folder = Path(folder)
    if (folder / "things.json").exists() and len(Views(folder)) >= count:
        return
    images, things = np.empty((count, size, size, 3), np.uint8), []
    bar = tqdm(total=count, unit="view", disable=None if progress is None else not progress)
    with bar, closing(in_order(partial(_draw, seed, size), range(count), workers)) as drawn:
        for k, (image, thing) in enumerate(drawn):
            images[k] = image
            things.append(thing)
            bar.update()
    with writing_folder(folder) as new:
        np.save(new / "images.npy", images)
        (new / "things.json").write_text(json.dumps(things))


def _draw(seed: int, size: int, index: int) -> tuple[np.ndarray, dict[str, Any]]:
    rng = scene_rng(seed, index)
    thing: dict[str, Any] = {
        "shape": pick(rng, vocabulary.SHAPES),
        "colour": pick(rng, vocabulary.COLOURS),
        "material": pick(rng, vocabulary.MATERIALS),
        "size": pick(rng, vocabulary.SIZES),
    }
    scene = alone(SceneObject(**thing, position=(0.0, 0.0)), rng)
    image = np.clip(render(scene, size, size).image * 255 + 0.5, 0, 255).astype(np.uint8)
    return image, thing


class Views:
    """The pictures in a folder written by `render_views`."""

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        if not (folder / "things.json").exists():
            raise NotFoundError(
                f"{folder} holds no views; make them with render_views, or the stage 'renders'"
            )
        self._images = read_array(folder / "images.npy")
        facts = json_text.read_list(folder / "things.json", LIMITS)
        if not facts:
            raise InputError(f"{folder} holds no view; count must be at least 1")
        try:
            self.things = [SceneObject(**fact, position=(0.0, 0.0)) for fact in facts]
        except (TypeError, ValueError) as error:
            raise InputError(f"{folder / 'things.json'} holds other things: {error}") from error
        by_kind: dict[Kind, list[int]] = defaultdict(list)
        for number, thing in enumerate(self.things):
            by_kind[_kind(thing)].append(number)
        self._by_kind = {kind: np.array(numbers) for kind, numbers in by_kind.items()}

    def __len__(self) -> int:
        return len(self.things)

    def of(self, thing: SceneObject, rng: np.random.Generator, size: int) -> Tensor | None:
        """A picture of such a thing in [-1, 1], `(1, 3, size, size)`; None where there is none."""
        numbers = self._by_kind.get(_kind(thing))
        if numbers is None:
            return None
        return self._pictures(rng.choice(numbers, 1), size)

    def told(self, count: int, rng: np.random.Generator, size: int) -> tuple[Tensor, list[str]]:
        """Pictures of random things, `(count, 3, size, size)`, and a phrase for each."""
        numbers = rng.integers(len(self), size=count)
        said = [phrases(Scene((self.things[int(i)],)), rng)[0] for i in numbers]
        return self._pictures(numbers, size), said

    def _pictures(self, numbers: np.ndarray, size: int) -> Tensor:
        images = to_signed(np.stack([self._images[int(i)] for i in numbers]))
        return F.interpolate(images, (size, size), mode="bilinear", antialias=True)


def _kind(thing: SceneObject) -> Kind:
    return thing.shape, thing.colour, thing.material
