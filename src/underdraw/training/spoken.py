"""Captions of examples that are drawn once, ahead of training, and read once by the text tower.

A frozen text tower reads the same caption to the same numbers each time: on a CPU that was 6 % of
the time of the denoiser. What is kept is large, 30 kB a caption at 77 tokens of width 192, so it
lies in files, and few captions are drawn for each example.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from underdraw.errors import InputError, NotFoundError, WeightError
from underdraw.formats.arrays import read_array
from underdraw.formats.writing import writing_file
from underdraw.training.data import Examples
from underdraw.training.tokens import tokenize

SHARD = 1024
"""Examples of one file."""
EMPTY = "empty.npy"


def draw_captions(examples: Examples, first: int, last: int, count: int, seed: int) -> list[str]:
    """`count` captions of each of the examples `first` to `last - 1`, those of one example side by
    side. They do not depend on what else is drawn."""
    told: list[str] = []
    for index in range(first, last):
        rng = np.random.default_rng([seed, index])
        told += examples.captions(np.full(count, index), rng)
    return told


@torch.no_grad()
def read_captions(
    text_encoder: Any,
    tokenizer: Any,
    examples: Examples,
    folder: str | Path,
    count: int,
    *,
    seed: int = 0,
    batch: int = 64,
    progress: bool | None = False,
) -> None:
    """Keep what the tower makes of `count` captions of each example in `folder`.

    `NNN.npy`, float16 `(examples, count, tokens, width)`, has `SHARD` examples, `empty.npy` the
    empty caption. Files that are whole are kept, so an interrupted run goes on where it was.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    length = text_encoder.config.max_position_embeddings

    def read(texts: list[str]) -> np.ndarray:
        ids = torch.from_numpy(tokenize(tokenizer, length, texts)).to(text_encoder.device)
        return text_encoder(ids).last_hidden_state.float().cpu().numpy().astype(np.float16)

    _write(folder / EMPTY, read([""])[0])
    hidden = None if progress is None else not progress
    with tqdm(total=len(examples) * count, unit="caption", disable=hidden) as bar:
        for number, first in enumerate(range(0, len(examples), SHARD)):
            last = min(first + SHARD, len(examples))
            path, shape = folder / f"{number:03d}.npy", (last - first, count)
            if not _holds(path, shape):
                texts = draw_captions(examples, first, last, count, seed)
                parts = [read(texts[k : k + batch]) for k in range(0, len(texts), batch)]
                whole = np.concatenate(parts)
                _write(path, whole.reshape(*shape, *whole.shape[1:]))
            bar.update((last - first) * count)


def _write(path: Path, values: np.ndarray) -> None:
    with writing_file(path) as file:
        np.save(file, values)


def _holds(path: Path, shape: tuple[int, int]) -> bool:
    try:
        return read_array(path).shape[:2] == shape
    except (NotFoundError, WeightError):
        return False


class Spoken:
    """What `read_captions` kept in a folder, for `examples` examples.

    Raises:
        NotFoundError: there is nothing.
        InputError: it is of another number of examples.
    """

    def __init__(self, folder: str | Path, examples: int) -> None:
        paths = sorted(Path(folder).glob("[0-9][0-9][0-9].npy"))
        if not paths:
            raise NotFoundError(f"{folder} holds no captions; make them with read_captions")
        self._empty = read_array(Path(folder) / EMPTY)
        self._shards = [read_array(path) for path in paths]
        there = sum(map(len, self._shards))
        if there != examples or any(len(shard) != SHARD for shard in self._shards[:-1]):
            raise InputError(
                f"{folder} holds captions of {there} examples, not {examples}; make them again"
            )
        self.count: int = self._shards[0].shape[1]

    def contexts(self, indices: np.ndarray, which: np.ndarray) -> Tensor:
        """What the tower made of caption `which[i]` of example `indices[i]`, float32 `(n, tokens,
        width)`; -1 for the empty caption."""
        made = np.empty((len(indices), *self._empty.shape), np.float32)
        for row, (index, caption) in enumerate(zip(indices, which, strict=True)):
            shard, place = divmod(int(index), SHARD)
            made[row] = self._empty if caption < 0 else self._shards[shard][place, caption]
        return torch.from_numpy(made)
