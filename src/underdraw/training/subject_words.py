"""A subject's tokens in prompts, as `controls.subject` puts them there, with a gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from underdraw.controls.subject_tokens import find
from underdraw.errors import InputError
from underdraw.networks import clip
from underdraw.networks.program import directly
from underdraw.training.tokens import tokenize


@dataclass(frozen=True)
class Prompts:
    """Windows of tokens: `ids` int64 `(n, tokens)`, and where the tokens of a subject begin in
    each, 0 where there are none."""

    ids: Tensor
    begins: tuple[int, ...]


def prompts(
    tokenizer: Any, length: int, texts: Sequence[str], words: Sequence[str | None], count: int
) -> Prompts:
    """Texts with room for `count` tokens of a subject before `words`; None leaves one without.

    Raises:
        InputError: the words are not in the text.
    """
    ids, begins = tokenize(tokenizer, length - count, texts), []
    last = ids[:, -1:]  # the end token, or padding
    whole = np.concatenate([ids, np.repeat(last, count, 1)], 1)
    for i, (text, word) in enumerate(zip(texts, words, strict=True)):
        found = [0] if word is None else find(tokenizer, word, ids[i])
        if not found:
            raise InputError(f"the words {word!r:.60} are not in the text {text!r:.80}")
        at = found[0]
        begins.append(at)
        if at:
            whole[i] = np.concatenate([ids[i, :at], np.full(count, -1), ids[i, at:]])
    return Prompts(torch.from_numpy(whole), tuple(begins))


def read(text_encoder: Any, ids: Tensor, begins: Sequence[int], tokens: Tensor, **how: Any) -> Any:
    """What the text tower makes of windows with tokens `(n, count, width)` in them; `how` are
    further arguments of `networks.clip.text`."""
    nn, config, count = text_encoder.nn, text_encoder.config, tokens.shape[1]
    embeddings = directly(clip.EMBED_TOKENS, text_encoder, ids.clamp(min=0))
    rows = []
    for row, at, own in zip(embeddings, begins, tokens, strict=True):
        rows.append(torch.cat([row[:at], own, row[at + count :]]) if at else row)
    made = torch.stack(rows)
    return clip.text(nn, text_encoder, config, ids, made, **how)
