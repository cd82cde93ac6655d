"""Folders of pictures of subjects: a few of one, to tune to it, and many of many, to train a
subject encoder on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from underdraw.controls.subject import MOST_PICTURES
from underdraw.errors import InputError, NotFoundError
from underdraw.formats import json_text
from underdraw.formats.opening import is_regular, read_lines
from underdraw.pictures.cropping import cut_to
from underdraw.pictures.files import opened, read_file
from underdraw.pictures.modes import as_mask, plain
from underdraw.training.data import to_signed
from underdraw.training.subject_tuning import SubjectPictures

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
METADATA = "metadata.jsonl"
LINE = '{"file_name": "dog.png", "category": "dog", "text": "a dog in the snow", "mask": "m.png"}'


@dataclass(frozen=True)
class Entry:
    """One picture of a folder."""

    picture: Path
    category: str
    text: str
    mask: Path | None = None


def read_pictures(folder: str | Path, category: str) -> SubjectPictures:
    """All pictures of a folder as those of one subject; where its `metadata.jsonl` says a `text` of
    one, that is its caption.

    Raises:
        NotFoundError: there is no such folder, or no picture in it.
        InputError: too many of them, one that cannot be read, a text without the category.
    """
    place = Path(folder)
    if not place.is_dir():
        raise NotFoundError(f"{folder}: there is no such folder")
    paths = sorted(path for path in place.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise NotFoundError(f"{folder} holds no picture ({', '.join(SUFFIXES)})")
    if len(paths) > MOST_PICTURES:
        raise InputError(
            f"{folder} holds {len(paths)} pictures; allowed: {MOST_PICTURES} of one subject"
        )
    told: dict[Path, str] = {}
    if is_regular(place / METADATA):
        told = {one.picture: one.text for one in _entries(place, category)}
    for path in paths:
        with opened(path):
            pass
    captions = [told.get(path, f"a {category}") for path in paths] if told else None
    pictures = [plain(repr(path.name), read_file(path)) for path in paths]
    return SubjectPictures(pictures, category, captions)


class SubjectFolder:
    """`SubjectExamples` in a folder with `metadata.jsonl`, one JSON object per line: a picture
    (`file_name`), what is to be seen in it (`category`), a `text` with these words ("a dog" if not
    given; of several the first with them), and where there is one a `mask`, white where the subject
    is.

    Pictures are cut to squares of `size` pixels. What shows a subject is cut out along its mask and
    put on another background with probability `background`; without a mask it is the whole picture.

    Raises:
        NotFoundError: no folder, no `metadata.jsonl`, or a file that it names is missing.
        InputError: a line is not such an object, or there is none.
    """

    def __init__(self, folder: str | Path, size: int, background: float = 0.6) -> None:
        self.folder, self.size, self.background = Path(folder), size, background
        if not is_regular(self.folder / METADATA):
            raise NotFoundError(f"{self.folder / METADATA} is not there; each line: {LINE}")
        self.entries = _entries(self.folder)
        if not self.entries:
            raise InputError(f"{self.folder / METADATA} names no picture; each line: {LINE}")

    @property
    def paths(self) -> list[Path]:
        """Of the pictures, in the order of their numbers."""
        return [entry.picture for entry in self.entries]

    def __len__(self) -> int:
        return len(self.entries)

    def images(self, indices: np.ndarray) -> Tensor:
        return to_signed(np.stack([self._picture(int(i)) for i in indices]))

    def captions(self, indices: np.ndarray, rng: np.random.Generator) -> list[str]:
        return [self.entries[int(i)].text for i in indices]

    def category(self, index: int) -> str:
        """What the subject is."""
        return self.entries[index].category

    def described(self, index: int, rng: np.random.Generator) -> str:
        """All that is known of it: the text."""
        return self.entries[index].text

    def shown(self, index: int, rng: np.random.Generator, size: int) -> Tensor:
        """A picture of the subject in [-1, 1], `(1, 3, size, size)`."""
        picture, mask = self._picture(index), self._mask(index)
        if mask is not None and rng.random() < self.background:
            other = self._picture(int(rng.integers(len(self))))[:, :: int(rng.choice([1, -1]))]
            picture = np.where(mask[..., None] > 0.5, picture, other)
        made = to_signed(np.array(picture)[None])
        return F.interpolate(made, (size, size), mode="bilinear", antialias=True)

    def where(self, indices: np.ndarray, size: tuple[int, int]) -> Tensor:
        """How much of each cell the subject covers, float32 `(n, *size)`; 1 without a mask."""
        side = (self.size, self.size)
        masks = [self._mask(int(i)) for i in indices]
        made = np.stack([np.ones(side, np.float32) if m is None else m for m in masks])
        return F.adaptive_avg_pool2d(torch.from_numpy(made)[:, None], size)[:, 0]

    def _picture(self, index: int) -> np.ndarray:
        path = self.entries[index].picture
        return np.asarray(cut_to(plain(repr(path.name), read_file(path)), self.size, self.size))

    def _mask(self, index: int) -> np.ndarray | None:
        path = self.entries[index].mask
        if path is None:
            return None
        mask = as_mask(repr(path.name), read_file(path)).convert("L")
        made = cut_to(mask, self.size, self.size)
        assert isinstance(made, Image.Image)
        return np.asarray(made, np.float32) / 255


def _entries(folder: Path, category: str | None = None) -> list[Entry]:
    path, found = folder / METADATA, []
    for number, line in read_lines(path, fault=InputError):
        where = f"{path}:{number}"
        raw = json_text.parse(
            line, where, fault=InputError, told=f" is not JSON; each line: {LINE}"
        )
        raw = raw if isinstance(raw, dict) else {}
        name, mask = raw.get("file_name"), raw.get("mask")
        kind = category or raw.get("category")
        if not isinstance(name, str) or not isinstance(kind, str) or not kind.strip():
            raise InputError(f"{where} lacks a file_name or a category; each line: {LINE}")
        texts = raw.get("text", f"a {kind}")
        texts = texts if isinstance(texts, list) else [texts]
        fit = [t for t in texts if isinstance(t, str) and f" {kind} ".lower() in f" {t} ".lower()]
        if not fit:
            raise InputError(f"{where}: its text {texts!r:.60} lacks the category {kind!r:.40}")
        if mask is not None and not isinstance(mask, str):
            raise InputError(f"{where}: its mask is {mask!r:.40}, no file")
        for one in (name, *([mask] if mask else [])):
            if not is_regular(folder / one):
                raise NotFoundError(f"{where}: there is no file {folder / one}")
        found.append(Entry(folder / name, kind, fit[0], folder / mask if mask else None))
    return found
