"""Pictures with captions to tune a checkpoint on: in memory, or a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from underdraw.errors import InputError, InputTypeError, NotFoundError
from underdraw.formats.opening import is_regular, read_lines, read_text
from underdraw.pictures.cropping import cut_to
from underdraw.pictures.files import opened, read_file
from underdraw.pictures.modes import plain, upright_size
from underdraw.pictures.reading import as_picture
from underdraw.training.data import METADATA, check_pictures, entry

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MOST_PICTURES = 100_000


@dataclass(frozen=True, eq=False)
class TrainingPictures:
    """Pictures and what is said of each.

    Args:
        pictures: PIL pictures, arrays, or paths of files, which are opened when they are needed.
        captions: a text for each, or several of which one is drawn each time.

    Raises:
        InputError, InputTypeError: there are none, or not as many captions as pictures.
    """

    pictures: Sequence[Any]
    captions: Sequence[str | Sequence[str]]

    def __post_init__(self) -> None:
        if isinstance(self.captions, str) or not isinstance(self.captions, Sequence):
            raise InputTypeError(f"captions={self.captions!r:.80} is no list of texts")
        if not len(self.pictures):
            raise InputError("pictures is empty; at least one is needed")
        if len(self.captions) != len(self.pictures):
            raise InputError(
                f"captions has {len(self.captions)} entries; there are {len(self.pictures)} "
                "pictures"
            )
        for one in self.captions:
            texts = list(one) if isinstance(one, list | tuple) else [one]
            if not texts or not all(isinstance(text, str) for text in texts):
                raise InputTypeError(f"captions has {one!r:.80}, which is no text")

    def __len__(self) -> int:
        return len(self.pictures)

    def texts(self, index: int) -> tuple[str, ...]:
        """All that may be said of a picture."""
        told = self.captions[index]
        return (told,) if isinstance(told, str) else tuple(told)

    def says(self, index: int, rng: np.random.Generator) -> str:
        """One of its texts."""
        texts = self.texts(index)
        return texts[int(rng.integers(len(texts)))]

    def size(self, index: int) -> tuple[int, int]:
        """Height and width, as it is to be looked at."""
        one = self.pictures[index]
        if isinstance(one, str | Path):
            with opened(one) as picture:
                width, height = upright_size(picture)
        else:
            width, height = as_picture("pictures", one).size
        return height, width

    def cut(self, index: int, height: int, width: int) -> np.ndarray:
        """Its middle in a size, uint8 `(height, width, 3)`."""
        one = self.pictures[index]
        if isinstance(one, str | Path):
            picture = plain(repr(Path(one).name), read_file(one))
        else:
            picture = as_picture("pictures", one)
        return np.asarray(cut_to(picture, height, width), np.uint8)


def read_folder(folder: str | Path, caption: str | Sequence[str] | None = None) -> TrainingPictures:
    """The pictures of a folder. What is said of each stands in `metadata.jsonl` (one object a line,
    `{"file_name": "cat.png", "text": "a cat"}`; `text` may be a list, and pictures it does not name
    are left out), or in a text file beside the picture, `cat.txt`; `caption` is of those that have
    none.

    Raises:
        NotFoundError: no folder, no picture in it, or a file that is named is missing.
        InputError: a line is not such an object, a picture cannot be read, or nothing is said of
            one.
    """
    place = Path(folder)
    if not place.is_dir():
        raise NotFoundError(f"{folder}: there is no such folder")
    if is_regular(place / METADATA):
        found = dict(_listed(place))
    else:
        found = dict(_beside(place, caption))
    if not found:
        raise NotFoundError(f"{folder} holds no picture ({', '.join(SUFFIXES)})")
    if len(found) > MOST_PICTURES:
        raise InputError(f"{folder} holds {len(found):,} pictures; allowed: {MOST_PICTURES:,}")
    check_pictures(list(found))
    return TrainingPictures(list(found), list(found.values()))


def _listed(place: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    path = place / METADATA
    for number, line in read_lines(path, fault=InputError):
        name, texts = entry(line, f"{path}:{number}")
        if not is_regular(place / name):
            raise NotFoundError(f"{path}:{number}: there is no picture {place / name}")
        yield place / name, texts


def _beside(place: Path, caption: Any) -> Iterator[tuple[Path, Any]]:
    for path in sorted(one for one in place.iterdir() if one.suffix.lower() in SUFFIXES):
        said = path.with_suffix(".txt")
        if is_regular(said):
            yield path, " ".join(read_text(said).split())
        elif caption is None:
            raise InputError(
                f"{path}: nothing is said of it; wanted are {METADATA} in the folder, {said.name} "
                "beside it, or a caption for all"
            )
        else:
            yield path, caption
