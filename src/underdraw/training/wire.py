"""Examples on their way from the processes that draw them to the device that learns from them.

A step looks at nothing but the tensors of its batch, whose shapes are those of every other step,
and an accelerator is asked for no value of them: so a step can be recorded once and played again.
Few bytes go there: pixels and answers are uint8, and become numbers where they are used. On a
processor, where to look costs nothing, what is padding is left out instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from underdraw.training.data import Examples
from underdraw.training.tokens import tokenize


class Kept:
    """A tensor of the host on every device that needs it: brought there once, since such a copy
    waits for what runs there."""

    def __init__(self, value: Tensor) -> None:
        self.value = value
        self._there: dict[torch.device, Tensor] = {}

    def on(self, device: torch.device) -> Tensor:
        """It on a device."""
        if device not in self._there:
            self._there[device] = self.value.to(device)
        return self._there[device]


def at_hand(values: Tensor) -> bool:
    """Whether values can be looked at without waiting for a device."""
    return values.device.type == "cpu"


# -- pictures ------------------------------------------------------------------------------------
def images(examples: Examples, indices: np.ndarray) -> Tensor:
    """`(n, 3, height, width)`: uint8 of examples that have `pixels`, or float32 in [-1, 1]."""
    pixels: Any = getattr(examples, "pixels", None)
    if pixels is None:
        return examples.images(indices)
    return torch.from_numpy(pixels(indices)).permute(0, 3, 1, 2).contiguous()


def in_bytes(pixels: Tensor) -> Tensor:
    """Pixels in [-1, 1] as uint8."""
    return ((pixels + 1) * 127.5).round_().clamp_(0, 255).byte()


def signed(pixels: Tensor) -> Tensor:
    """Pixels in [-1, 1]: of uint8, or those that are such numbers already."""
    return pixels if pixels.is_floating_point() else pixels.float() / 127.5 - 1


# -- words ---------------------------------------------------------------------------------------
def windows(tokenizer: Any, length: int, texts: Sequence[str], short: int) -> np.ndarray:
    """int64 `(n, short)`, or `(n, length)` where a text does not fit in there."""
    ids = tokenize(tokenizer, length, texts)
    fits = short < length and (_ends(ids, tokenizer.eos_token_id) < short).all()
    return ids[:, :short] if fits else ids


def without_padding(tokenizer: Any, ids: Tensor) -> Tensor:
    """Windows up to the longest text's end, where that can be told: what follows an end cannot
    reach back to it."""
    if not at_hand(ids) or not len(ids):
        return ids
    return ids[:, : int(_ends(ids.numpy(), tokenizer.eos_token_id).max()) + 1]


def _ends(ids: np.ndarray, end: int) -> np.ndarray:
    """Where the first end token of each window is; a start token may be the same."""
    return (ids[:, 1:] == end).argmax(1) + 1


def padded(words: tuple[np.ndarray, np.ndarray], short: int, padding: int) -> tuple[Tensor, Tensor]:
    """Pieces of words and what of them counts, `(n, short)`, or as many as there are if more."""
    ids, keep = words
    more = ((0, 0), (0, max(0, short - ids.shape[1])))
    filled = np.pad(ids, more, constant_values=padding)
    return torch.from_numpy(filled), torch.from_numpy(np.pad(keep, more))


def unpadded(ids: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Pieces of words up to the last that counts in any row, where that can be told: what `padded`
    was given."""
    if not at_hand(ids):
        return ids, keep
    longest = max(1, int(keep.sum(1).max()))
    return ids[:, :longest], keep[:, :longest]
