"""Examples to train on: rendered scenes kept on disk, and folders of captioned images.

All of them are numbered, answer with images or latents and captions for given numbers, and hold no
state, so that a run can be resumed anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from underdraw.errors import InputError, NotFoundError
from underdraw.scenes import (
    Camera,
    Caption,
    Floor,
    Light,
    Scene,
    SceneObject,
    Texture,
    caption,
    render,
    sample_scene,
    scene_rng,
)
from underdraw.weights.save import writing_folder

SHARD = 4096
MIX = (1,) * 7 + (2,) * 8 + (3,) * 3 + (4,) * 2
"""Object counts of scenes i, i + 1, ... in turn: 35 % one, 40 % two, 15 % three, 10 % four."""
HELD_BACK = 64
"""The first scenes of a cache are for looking at, never for training."""


class Examples(Protocol):
    """Numbered images with captions."""

    def __len__(self) -> int: ...

    def images(self, indices: np.ndarray) -> Tensor:
        """Images in [-1, 1], float32 `(n, 3, height, width)`."""
        ...

    def captions(self, indices: np.ndarray, rng: np.random.Generator) -> list[str]:
        """A caption for each, which may be another one each time."""
        ...


def shuffled(count: int, first: int, number: int, seed: int = 0) -> np.ndarray:
    """Numbers `first` to `first + number - 1` of an endless stream in which every run of `count`
    is a permutation of `range(count)`."""
    pairs = [divmod(place, count) for place in range(first, first + number)]
    return np.array([_permutation(count, epoch, seed)[at] for epoch, at in pairs])


@lru_cache(maxsize=4)
def _permutation(count: int, epoch: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, count]).permutation(count)


def to_signed(images: np.ndarray) -> Tensor:
    """uint8 `(n, height, width, 3)` to float32 `(n, 3, height, width)` in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1).contiguous()


# -- rendered scenes -----------------------------------------------------------------------------
def render_cache(
    folder: str | Path,
    count: int,
    *,
    seed: int = 20251120,
    size: int = 128,
    mix: Sequence[int] = MIX,
    progress: bool | None = False,
) -> None:
    """Render `count` scenes of the split "train" into shards of `SHARD`; finished ones are kept.

    A shard is `NNN/images.npy`, uint8 `(SHARD, size, size, 3)`, and `NNN/scenes.json`, so that
    captions can be drawn anew each time. About 10 ms per scene of 128 x 128.
    """
    from tqdm import tqdm

    folder = Path(folder)
    shards = [range(s, min(s + SHARD, count)) for s in range(0, count, SHARD)]
    bar = tqdm(total=count, unit="scene", disable=None if progress is None else not progress)
    for number, indices in enumerate(shards):
        place = folder / f"{number:03d}"
        if not (place / "scenes.json").exists():
            images = np.empty((len(indices), size, size, 3), np.uint8)
            facts = []
            for k, i in enumerate(indices):
                scene = sample_scene(scene_rng(seed, i), mix[i % len(mix)])
                made = render(scene, size, size)
                images[k] = np.clip(made.image * 255 + 0.5, 0, 255)
                facts.append({"scene": asdict(scene), "boxes": made.boxes.round(4).tolist()})
                bar.update()
            with writing_folder(place) as new:
                np.save(new / "images.npy", images)
                (new / "scenes.json").write_text(json.dumps(facts))
        else:
            bar.update(len(indices))
    bar.close()


def scene_from(raw: dict[str, Any]) -> Scene:
    """A scene from `dataclasses.asdict` of one."""
    objects = tuple(
        SceneObject(
            **{
                **o,
                "position": tuple(o["position"]),
                "texture": Texture(**o["texture"]) if o["texture"] else None,
            }
        )
        for o in raw["objects"]
    )
    parts = {"floor": Floor(**raw["floor"]), "light": Light(**raw["light"])}
    return Scene(objects, camera=Camera(**raw["camera"]), **parts)


class RenderedScenes:
    """`Examples` in a folder written by `render_cache`, without the first `HELD_BACK`."""

    def __init__(self, folder: str | Path, held_back: int = HELD_BACK) -> None:
        places = sorted(Path(folder).glob("[0-9][0-9][0-9]"))
        if not places:
            raise NotFoundError(f"{folder} holds no rendered scenes; make them with render_cache")
        self._shards = [np.load(place / "images.npy", mmap_mode="r") for place in places]
        self._starts = np.cumsum([0, *map(len, self._shards)])
        self._facts = [
            f for place in places for f in json.loads((place / "scenes.json").read_text())
        ]
        self.held_back = held_back
        if len(self._facts) <= held_back:
            raise InputError(f"{folder} holds {len(self._facts)} scenes; {held_back} are held back")

    def __len__(self) -> int:
        return len(self._facts) - self.held_back

    def pixels(self, indices: np.ndarray) -> np.ndarray:
        """Images as stored, uint8 `(n, height, width, 3)`."""
        found = []
        for i in np.asarray(indices) + self.held_back:
            shard = int(np.searchsorted(self._starts, i, "right")) - 1
            found.append(self._shards[shard][i - self._starts[shard]])
        return np.stack(found)

    def images(self, indices: np.ndarray) -> Tensor:
        return to_signed(self.pixels(indices))

    def scene(self, index: int) -> Scene:
        """The scene of an example."""
        return scene_from(self._facts[index + self.held_back]["scene"])

    def boxes(self, index: int) -> np.ndarray:
        """Boxes of its objects, float32 `(objects, 4)`."""
        boxes = self._facts[index + self.held_back]["boxes"]
        return np.array(boxes, np.float32).reshape(-1, 4)

    def described(self, index: int, rng: np.random.Generator) -> Caption:
        """A fresh caption with what it states."""
        return caption(self.scene(index), rng)

    def captions(self, indices: np.ndarray, rng: np.random.Generator) -> list[str]:
        return [self.described(int(i), rng).text for i in indices]

    def shown(self) -> np.ndarray:
        """The images that are held back, uint8."""
        return self.pixels(np.arange(-self.held_back, 0))


# -- captioned images ----------------------------------------------------------------------------
class CaptionedFolder:
    """`Examples` in a folder of images with `metadata.jsonl`, one JSON object per line:
    `{"file_name": "cat.png", "text": "a cat"}`; `text` may be a list to choose from.

    Images are scaled so that the shorter side is `size`, and cut to a square in the middle.

    Raises:
        NotFoundError: no folder, no `metadata.jsonl`, or an image it names is missing.
        InputError: a line is not such an object, or there is none.
    """

    def __init__(self, folder: str | Path, size: int) -> None:
        if size < 8 or size % 8:
            raise InputError(f"size={size} must be a multiple of 8 and at least 8")
        self.folder, self.size = Path(folder), size
        path = self.folder / "metadata.jsonl"
        if not path.is_file():
            raise NotFoundError(f"{path} is not there; each line: {_LINE}")
        self._entries: list[tuple[str, tuple[str, ...]]] = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            name, texts = _entry(line, f"{path}:{number}")
            if not (self.folder / name).is_file():
                raise NotFoundError(f"{path}:{number}: there is no image {self.folder / name}")
            self._entries.append((name, texts))
        if not self._entries:
            raise InputError(f"{path} names no image; each line: {_LINE}")

    def __len__(self) -> int:
        return len(self._entries)

    def images(self, indices: np.ndarray) -> Tensor:
        return to_signed(np.stack([self._open(self._entries[int(i)][0]) for i in indices]))

    def captions(self, indices: np.ndarray, rng: np.random.Generator) -> list[str]:
        texts = [self._entries[int(i)][1] for i in indices]
        return [choices[int(rng.integers(len(choices)))] for choices in texts]

    def _open(self, name: str) -> np.ndarray:
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(self.folder / name) as file:
                image = file.convert("RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise InputError(f"{self.folder / name} is not a readable image: {error}") from error
        scale = self.size / min(image.size)
        width, height = (max(self.size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        return np.asarray(image.crop((left, top, left + self.size, top + self.size)))


_LINE = '{"file_name": "cat.png", "text": "a cat"}'


def _entry(line: str, where: str) -> tuple[str, tuple[str, ...]]:
    try:
        raw = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is not JSON ({error}); each line: {_LINE}") from error
    name, text = (raw.get(k) if isinstance(raw, dict) else None for k in ("file_name", "text"))
    listed = text if isinstance(text, list) else [text]
    texts = tuple(one for one in listed if isinstance(one, str))
    if not isinstance(name, str) or not texts or len(texts) < len(listed):
        raise InputError(f"{where} lacks a file_name or a text; each line: {_LINE}")
    return name, texts
