"""Maps of examples for ControlNets: made once, kept beside the latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from underdraw.errors import InputError, WeightError
from underdraw.formats.arrays import read_array
from underdraw.formats.writing import writing_file
from underdraw.preprocessors.canny import lines
from underdraw.scenes.depth import depth_of
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
_BLOCK = 256


def map_all(
    examples: RenderedScenes, kind: str, path: str | Path, progress: bool | None = False
) -> np.ndarray:
    """Maps of all examples, uint8 `(n, height, width)`, kept in the file `path`, which is used
    where it holds as many.

    Raises:
        InputError: there is no such kind.
    """
    check_kinds([kind])
    path = Path(path)
    if (kept := _kept(path, len(examples))) is not None:
        return kept
    shown = None if progress is None else not progress
    with tqdm(total=len(examples), unit="map", disable=shown) as bar:
        made = []
        for block in _made(examples, kind):
            made.append(block)
            bar.update(len(block))
    with writing_file(path) as file:
        np.save(file, np.concatenate(made))
    return read_array(path)


def _made(examples: RenderedScenes, kind: str) -> Iterator[np.ndarray]:
    for start in range(0, len(examples), _BLOCK):
        indices = np.arange(start, min(start + _BLOCK, len(examples)))
        pixels = examples.pixels(indices)
        yield np.stack(
            [
                KINDS[kind](one, examples.scene(int(i)))
                for i, one in zip(indices, pixels, strict=True)
            ]
        )


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
