"""Maps of a folder of captioned pictures: files beside them, or made of them.

metadata.jsonl      {"file_name": "cat.png", "text": "a cat", "map": "maps/cat.png"}
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from underdraw.errors import InputError, NotFoundError
from underdraw.formats import json_text
from underdraw.formats.opening import is_regular, read_lines
from underdraw.pictures.files import opened
from underdraw.pictures.modes import upright_size
from underdraw.preprocessors import canny, soft_edges
from underdraw.training.data import CaptionedFolder

MADE: dict[str, Callable[[Any], Image.Image]] = {"edges": canny, "soft-edges": soft_edges}
"""What can be made of a picture alone."""
_PROPORTIONS = 0.02
"""By which a map's may differ from its picture's."""
_LINE = '{"file_name": "cat.png", "text": "a cat", "map": "maps/cat.png"}'


class FolderMaps:
    """Maps of the pictures of a folder, in their order; `maps[i]` is uint8 `(size, size, 3)`, cut
    as its picture is.

    Args:
        examples: the pictures.
        made: "edges" or "soft-edges", made of the pictures; None: the files that each line of
            `metadata.jsonl` names.

    Raises:
        InputError: `made` is not known; a line names no map, or one of other proportions than its
            picture.
        NotFoundError: a map is not there.
    """

    def __init__(self, examples: CaptionedFolder, made: str | None = None) -> None:
        if made is not None and made not in MADE:
            raise InputError(f"maps={made!r}; allowed: {', '.join(MADE)}")
        self.examples, self.made = examples, made
        self.paths: Sequence[Path] = [] if made else _named(examples)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> np.ndarray:
        if self.made is None:
            return self.examples.fitted(self.paths[index])
        picture = self.examples.fitted(self.examples.paths[index])
        return np.asarray(MADE[self.made](picture).convert("RGB"))


def _named(examples: CaptionedFolder) -> list[Path]:
    path, found = examples.folder / "metadata.jsonl", []
    pictures = iter(examples.paths)
    for number, line in read_lines(path, fault=InputError):
        at, picture = f"{path}:{number}", next(pictures)
        raw = json_text.parse(line, at, fault=InputError)
        name = raw.get("map") if isinstance(raw, dict) else None
        if not isinstance(name, str):
            raise InputError(f"{at} names no map; each line: {_LINE}")
        if not is_regular(examples.folder / name):
            raise NotFoundError(f"{at}: there is no map {examples.folder / name}")
        _check(examples.folder / name, picture, at)
        found.append(examples.folder / name)
    return found


def _check(path: Path, picture: Path, at: str) -> None:
    """Raise an InputError unless a map is cut as its picture is."""
    with opened(path) as one, opened(picture) as other:
        (a, b), (c, d) = upright_size(one), upright_size(other)
    if abs(a * d - b * c) > _PROPORTIONS * a * d:
        raise InputError(f"{at}: the map is {a} x {b} pixels, its picture {c} x {d}")
