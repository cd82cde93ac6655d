"""Examples to train on: rendered scenes kept on disk, and folders of captioned images.

All of them are numbered, answer with images or latents and captions for given numbers, and hold no
state, so that a run can be resumed anywhere.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from underdraw.errors import InputError, NotFoundError
from underdraw.formats import json_text
from underdraw.formats.arrays import read_array
from underdraw.formats.opening import MB, is_regular, read_lines
from underdraw.pictures.files import opened, read_file
from underdraw.pictures.modes import plain
from underdraw.scenes import (
    Camera,
    Caption,
    Floor,
    Light,
    Scene,
    SceneObject,
    Texture,
    caption,
    phrases,
    render,
    sample_scene,
    scene_rng,
    vocabulary,
)
from underdraw.scenes.stream import in_order
from underdraw.weights.atomic import writing_folder
from underdraw.weights.replacing import settle

SHARD = 4096
MIX = (1,) * 4 + (2,) * 9 + (3,) * 4 + (4,) * 3
"""Object counts of scenes i, i + 1, ... in turn: 20 % one, 45 % two, 20 % three, 15 % four."""
CELL = 8
"""Pixels of one cell of the stored object maps: the factor of the autoencoder."""
HELD_BACK = 64
"""The first scenes of a cache are for looking at, never for training."""


class Examples(Protocol):
    """Numbered images with captions.

    Where they also have a method `pixels(indices)`, which gives the same images as uint8 `(n,
    height, width, 3)`, those go to the device: a quarter of the bytes.
    """

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
    return np.array([_permutation(count, epoch, seed)[at] for epoch, at in pairs], np.int64)


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
    workers: int = 1,
    seconds: float | None = None,
    progress: bool | None = False,
) -> None:
    """Render `count` scenes of the split "train" into shards of `SHARD`; finished ones are kept.

    With `seconds`, shards that would not be whole by then are left out, the first apart, by what
    those before took.

    A shard is `NNN/images.npy`, uint8 `(SHARD, size, size, 3)`; `NNN/cells.npy`, uint8 `(SHARD,
    size / 8, size / 8)`, the object that fills most of each cell (0: none); and `NNN/scenes.json`,
    so that captions can be drawn anew each time. About 10 ms per scene of 128 x 128 and worker.
    """
    folder = Path(folder)
    shards = [range(s, min(s + SHARD, count)) for s in range(0, count, SHARD)]
    bar = tqdm(total=count, unit="scene", disable=None if progress is None else not progress)
    places = {folder / f"{number:03d}": indices for number, indices in enumerate(shards)}
    missing = {p: indices for p, indices in places.items() if not (p / "scenes.json").exists()}
    make = partial(_draw, seed, size, tuple(mix))
    began, done = time.monotonic(), 0
    with bar, closing(in_order(make, chain(*missing.values()), workers)) as drawn:
        bar.update(count - sum(map(len, missing.values())))
        for place, indices in missing.items():
            taken = time.monotonic() - began
            each = taken / done if done else 0.0  # which nobody knows yet
            first = not done and len(missing) == len(places)
            if seconds is not None and not first and taken + each * len(indices) > seconds:
                break
            images = np.empty((len(indices), size, size, 3), np.uint8)
            cells = np.empty((len(indices), size // CELL, size // CELL), np.uint8)
            facts = []
            for k, (image, owners, fact) in enumerate(islice(drawn, len(indices))):
                images[k], cells[k] = image, owners
                facts.append(fact)
                bar.update()
            with writing_folder(place) as new:
                np.save(new / "images.npy", images)
                np.save(new / "cells.npy", cells)
                (new / "scenes.json").write_text(json.dumps(facts))
            done += len(indices)


def _draw(
    seed: int, size: int, mix: tuple[int, ...], index: int
) -> tuple[np.ndarray, np.ndarray, dict]:
    scene = sample_scene(scene_rng(seed, index), mix[index % len(mix)])
    made = render(scene, size, size)
    image = np.clip(made.image * 255 + 0.5, 0, 255).astype(np.uint8)
    fact = {"scene": asdict(scene), "boxes": made.boxes.round(4).tolist()}
    return image, owners(made.segmentation, CELL), fact


def owners(segmentation: np.ndarray, cell: int) -> np.ndarray:
    """The object that fills most of each cell, at least a quarter of it; uint8, 0 for none."""
    rows, columns = (side // cell for side in segmentation.shape)
    blocks = segmentation.reshape(rows, cell, columns, cell)
    ids = np.arange(1, max(int(segmentation.max()), 1) + 1)
    filled = (blocks[..., None] == ids).mean((1, 3))
    return np.where(filled.max(-1) >= 0.25, ids[filled.argmax(-1)], 0).astype(np.uint8)


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


TRUTH = (len(vocabulary.SHAPES) + 1, len(vocabulary.COLOURS), len(vocabulary.MATERIALS))
"""How many answers each question of `RenderedScenes.truth` has."""


LIMITS = json_text.Limits(size=64 * MB, values=4_000_000)
"""Of the facts of a shard: 4096 scenes have 3 MB, 700,000 values."""


class RenderedScenes:
    """`Examples` in a folder written by `render_cache`, without the first `HELD_BACK`."""

    def __init__(self, folder: str | Path, held_back: int = HELD_BACK) -> None:
        settle(Path(folder))
        places = shards_of(folder)
        if not places:
            raise NotFoundError(f"{folder} holds no rendered scenes; make them with render_cache")
        self._shards = [read_array(place / "images.npy") for place in places]
        self._cells = [read_array(place / "cells.npy") for place in places]
        self._starts = np.cumsum([0, *map(len, self._shards)])
        self._facts = [
            f for place in places for f in json_text.read_list(place / "scenes.json", LIMITS)
        ]
        if not all(isinstance(f, dict) and {"scene", "boxes"} <= f.keys() for f in self._facts):
            raise InputError(f"{folder} holds a scenes.json without scenes; render it anew")
        self.held_back = held_back
        if len(self._facts) <= held_back:
            raise InputError(f"{folder} holds {len(self._facts)} scenes; {held_back} are held back")

    def __len__(self) -> int:
        return len(self._facts) - self.held_back

    def pixels(self, indices: np.ndarray) -> np.ndarray:
        """Images as stored, uint8 `(n, height, width, 3)`."""
        return self._pick(self._shards, indices)

    def _pick(self, shards: list[np.ndarray], indices: np.ndarray) -> np.ndarray:
        return _picked(shards, self._starts, np.asarray(indices) + self.held_back)

    def truth(self, indices: np.ndarray) -> np.ndarray:
        """What stands in each cell: int64 `(n, 3, rows, columns)`, the number of its shape (0 where
        nothing stands), colour and material."""
        objects = self._pick(self._cells, indices)
        answers = []
        for i, cells in zip(indices, objects, strict=True):
            table = [(0, 0, 0)] + [
                (
                    vocabulary.SHAPES.index(o["shape"]) + 1,
                    vocabulary.COLOURS.index(o["colour"]),
                    vocabulary.MATERIALS.index(o["material"]),
                )
                for o in self._facts[int(i) + self.held_back]["scene"]["objects"]
            ]
            answers.append(np.array(table)[cells].transpose(2, 0, 1))
        return np.stack(answers)

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

    def cut_things(
        self, indices: np.ndarray, rng: np.random.Generator, size: int
    ) -> tuple[Tensor, list[str]]:
        """Cut-out things as images in [-1, 1], `(n, 3, size, size)`, and a phrase for each."""
        images, told = [], []
        for i, picture in zip(indices, self.pixels(indices), strict=True):
            boxes = self.boxes(int(i))
            areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
            likely = np.sqrt(areas)  # what hardly shows is hardly to be told
            chosen = int(rng.choice(len(boxes), p=likely / likely.sum()))
            images.append(cut(picture, boxes[chosen], size, float(rng.uniform(1.0, 1.4))))
            told.append(self.phrases(int(i), rng)[chosen])
        return torch.cat(images), told

    def phrases(self, index: int, rng: np.random.Generator | None = None) -> tuple[str, ...]:
        """A phrase for each of its objects; with `rng` some attributes are left out."""
        return phrases(self.scene(index), rng)

    def shown(self) -> np.ndarray:
        """The images that are held back, uint8."""
        return self.pixels(np.arange(-self.held_back, 0))


def shards_of(folder: str | Path) -> list[Path]:
    """The finished shards of a folder that `render_cache` writes, in order."""
    return sorted(Path(folder).glob("[0-9][0-9][0-9]"))


def scenes_in(folder: str | Path) -> int:
    """How many scenes there are in the finished shards of such a folder."""
    return sum(len(read_array(place / "images.npy")) for place in shards_of(folder))


def _picked(shards: Sequence[np.ndarray], starts: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Entries of arrays that follow one another, by their numbers in all of them."""
    found = []
    for i in numbers:
        shard = int(np.searchsorted(starts, i, "right")) - 1
        found.append(shards[shard][i - starts[shard]])
    return np.stack(found)


class ArrivingScenes:
    """Pictures of scenes that another process is still rendering (`render_cache`), for training
    without captions.

    There are as many as there will be from the beginning; while some are missing, picture `i` is
    one of those that are there, `i` modulo their number. So a run on them does not repeat to the
    bit, unlike one on `RenderedScenes`. Only whole shards count, and only their `images.npy` is
    read; whether there are more is looked at every `PAUSE` seconds at most.

    Args:
        count: how many scenes there will be, those included that are held back.
        patience: seconds to wait for the first shard.

    Raises:
        NotFoundError: it did not come in that time.
        InputError: `count`, or the first shard, has no more than `held_back`.
    """

    PAUSE = 2.0

    def __init__(
        self,
        folder: str | Path,
        count: int,
        held_back: int = HELD_BACK,
        patience: float = 120.0,
    ) -> None:
        if count <= held_back:
            raise InputError(f"count={count}; {held_back} are held back")
        self.folder, self.count, self.held_back = Path(folder), count, held_back
        self._shards: dict[Path, np.ndarray] = {}
        self._starts, self._looked = np.zeros(1, np.int64), 0.0
        until = time.monotonic() + patience
        while not self._look():
            if time.monotonic() > until:
                raise NotFoundError(
                    f"{folder} holds no rendered scenes, and none came in {patience:.0f} s; see "
                    "whether render_cache still runs"
                )
            time.sleep(0.1)
        if self._starts[-1] <= held_back:
            raise InputError(f"{folder} holds {self._starts[-1]} scenes; {held_back} are held back")

    def __len__(self) -> int:
        return self.count - self.held_back

    def _look(self) -> int:
        """Take in shards that have come; how many pictures there are."""
        self._looked = time.monotonic()
        for place in shards_of(self.folder):  # of which a missing one may come after later ones
            if place not in self._shards:
                self._shards[place] = read_array(place / "images.npy")
        self._starts = np.cumsum([0, *map(len, self._shards.values())])
        return int(self._starts[-1])

    def pixels(self, indices: np.ndarray) -> np.ndarray:
        """Images as stored, uint8 `(n, height, width, 3)`; from -`held_back` to -1 those that are
        held back."""
        indices = np.asarray(indices)
        if self._starts[-1] < self.count and time.monotonic() - self._looked > self.PAUSE:
            self._look()
        there = int(self._starts[-1]) - self.held_back
        numbers = np.where(indices < 0, indices, indices % there) + self.held_back
        return _picked([*self._shards.values()], self._starts, numbers)

    def images(self, indices: np.ndarray) -> Tensor:
        """Images in [-1, 1], float32 `(n, 3, height, width)`."""
        return to_signed(self.pixels(indices))

    def captions(self, indices: np.ndarray, rng: np.random.Generator) -> list[str]:
        """Nothing: what is on the pictures is not read."""
        return [""] * len(indices)

    def shown(self) -> np.ndarray:
        """The images that are held back, uint8."""
        return self.pixels(np.arange(-self.held_back, 0))


class FirstOf:
    """The first `count` of other examples."""

    def __init__(self, examples: Examples, count: int) -> None:
        if not 1 <= count <= len(examples):
            raise InputError(f"count={count} must be in 1 .. {len(examples)}")
        self.examples, self.count = examples, count

    def __len__(self) -> int:
        return self.count

    def images(self, indices: np.ndarray) -> Tensor:
        """Images in [-1, 1], float32 `(n, 3, height, width)`."""
        return self.examples.images(indices)

    def captions(self, indices: np.ndarray, rng: np.random.Generator) -> list[str]:
        """A caption for each."""
        return self.examples.captions(indices, rng)


def cut(image: np.ndarray, box: np.ndarray, size: int, margin: float = 1.2) -> Tensor:
    """The square around a box `(x_min, y_min, x_max, y_max)` in [0, 1], `margin` times as wide as
    its longer side and moved inside the image: `(1, 3, size, size)` in [-1, 1]."""
    height, width = image.shape[:2]
    sides = np.array([width, height, width, height])
    left, top, right, bottom = box * sides
    side = round(min(max(right - left, bottom - top, 4) * margin, height, width))
    x, y = (
        round(min(max((low + high - side) / 2, 0), limit - side))
        for low, high, limit in ((left, right, width), (top, bottom, height))
    )
    part = to_signed(np.ascontiguousarray(image[y : y + side, x : x + side])[None])
    return F.interpolate(part, (size, size), mode="bilinear", antialias=True)


# -- captioned images ----------------------------------------------------------------------------
def check_pictures(paths: Sequence[Path], most: int = 200) -> None:
    """Look at the heads of picture files, of many at some spread evenly, before anything is loaded.

    Raises:
        NotFoundError, InputError: one is not there, or is no picture that can be read.
    """
    for path in paths[:: -(-len(paths) // most)]:
        with opened(path):
            pass


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
        path = self.folder / METADATA
        if not path.is_file():
            raise NotFoundError(f"{path} is not there; each line: {LINE}")
        self._entries: list[tuple[str, tuple[str, ...]]] = []
        for number, line in read_lines(path, fault=InputError):
            name, texts = entry(line, f"{path}:{number}")
            if not is_regular(self.folder / name):
                raise NotFoundError(f"{path}:{number}: there is no image {self.folder / name}")
            self._entries.append((name, texts))
        if not self._entries:
            raise InputError(f"{path} names no image; each line: {LINE}")

    @property
    def paths(self) -> list[Path]:
        """Of the pictures, in the order of their numbers."""
        return [self.folder / name for name, _ in self._entries]

    def __len__(self) -> int:
        return len(self._entries)

    def images(self, indices: np.ndarray) -> Tensor:
        return to_signed(
            np.stack([self.fitted(self.folder / self._entries[int(i)][0]) for i in indices])
        )

    def captions(self, indices: np.ndarray, rng: np.random.Generator) -> list[str]:
        texts = [self._entries[int(i)][1] for i in indices]
        return [choices[int(rng.integers(len(choices)))] for choices in texts]

    def fitted(self, path: Path) -> np.ndarray:
        """A picture scaled and cut, uint8 `(size, size, 3)`."""
        image = plain(repr(path.name), read_file(path))
        scale = self.size / min(image.size)
        width, height = (max(self.size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        return np.asarray(image.crop((left, top, left + self.size, top + self.size)))


METADATA = "metadata.jsonl"
LINE = '{"file_name": "cat.png", "text": "a cat"}'


def entry(line: str, where: str) -> tuple[str, tuple[str, ...]]:
    """The name of a picture's file and its texts, from a line; `where` says which line it is.

    Raises:
        InputError: it is not such an object.
    """
    raw = json_text.parse(line, where, fault=InputError, told=f" is not JSON; each line: {LINE}")
    name, text = (raw.get(k) if isinstance(raw, dict) else None for k in ("file_name", "text"))
    listed = text if isinstance(text, list) else [text]
    texts = tuple(one for one in listed if isinstance(one, str))
    if not isinstance(name, str) or not texts or len(texts) < len(listed):
        raise InputError(f"{where} lacks a file_name or a text; each line: {LINE}")
    return name, texts
