"""Maps of examples for ControlNets: made once, kept beside the latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from underdraw.errors import InputError, WeightError
from underdraw.formats.arrays import read_array
from underdraw.formats.writing import writing_file
from underdraw.preprocessors.canny import lines
from underdraw.scenes import Scene
from underdraw.scenes.depth import depth_of
from underdraw.scenes.stream import in_order
from underdraw.training.data import RenderedScenes

Make = Callable[[np.ndarray, Any], np.ndarray]
"""Pixels, uint8 `(height, width, 3)`, and their scene to a map, uint8 `(height, width)`."""


def edges(pixels: np.ndarray, scene: Any = None) -> np.ndarray:
    """Thin edges of the picture, 255 on 0."""
    return lines(pixels).astype(np.uint8) * 255


def depth(pixels: np.ndarray, scene: Any) -> np.ndarray:
    """Inverse depth of the scene: 255 at the nearest place, 0 at the farthest."""
    return as_map(depth_of(scene, *pixels.shape[:2]))


def as_map(metres: np.ndarray) -> np.ndarray:
    """A depth in metres `(height, width)` as a map of inverse depth."""
    near = 1 / np.maximum(metres, 1e-6)
    spread = max(float(np.ptp(near)), 1e-9)
    return ((near - near.min()) * (255 / spread) + 0.5).astype(np.uint8)


KINDS: Mapping[str, Make] = {"edges": edges, "depth": depth}
"""What maps of scenes there are."""
_BLOCK = 64
"""Pictures that are read at once; they are on their way to processes before there is a map."""


def map_all(
    examples: RenderedScenes,
    kind: str,
    path: str | Path,
    progress: bool | None = False,
    *,
    count: int | None = None,
    workers: int = 1,
) -> np.ndarray:
    """Maps of all examples, or of the first `count`, uint8 `(n, height, width)`, kept in the file
    `path`, which is used where it holds as many. About 3 ms each and worker.

    Raises:
        InputError: there is no such kind, or there are no `count` examples.
    """
    check_kinds([kind])
    count = len(examples) if count is None else count
    if not 1 <= count <= len(examples):
        raise InputError(f"count={count} must be in 1 .. {len(examples)}")
    path = Path(path)
    if (kept := _kept(path, count)) is not None:
        return kept
    shown = None if progress is None else not progress
    made = np.empty((count, *examples.pixels(np.zeros(1, int)).shape[1:3]), np.uint8)
    with (
        tqdm(total=count, unit="map", disable=shown) as bar,
        closing(in_order(partial(_map, kind), _asked(examples, count), workers)) as maps,
    ):
        for index, one in enumerate(maps):
            made[index] = one
            bar.update()
    with writing_file(path) as file:
        np.save(file, made)
    return read_array(path)


def _asked(examples: RenderedScenes, count: int) -> Iterator[tuple[np.ndarray, Scene]]:
    for start in range(0, count, _BLOCK):
        indices = np.arange(start, min(start + _BLOCK, count))
        for i, pixels in zip(indices, examples.pixels(indices), strict=True):
            yield pixels, examples.scene(int(i))


def _map(kind: str, asked: tuple[np.ndarray, Scene]) -> np.ndarray:
    return KINDS[kind](*asked)


def _kept(path: Path, count: int) -> np.ndarray | None:
    try:
        found = read_array(path) if path.exists() else None
    except WeightError:  # of an interrupted disk, say; it is made anew
        return None
    return found if found is not None and len(found) == count else None


def check_kinds(kinds: Sequence[str]) -> None:
    """Raise an InputError where one is no kind of map, or there is none."""
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise InputError(f"maps={list(kinds)}; allowed: one or more of {', '.join(KINDS)}")
