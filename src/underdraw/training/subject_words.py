"""A subject's tokens in prompts, as `controls.subject` puts them there, with a gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from underdraw.controls.subject_tokens import find
from underdraw.errors import InputError
from underdraw.networks import clip
from underdraw.networks.program import directly
from underdraw.training.tokens import tokenize

OWN = -1
"""Stands in windows of tokens where those of a subject go."""


def prompts(
    tokenizer: Any, length: int, texts: Sequence[str], words: Sequence[str | None], count: int
) -> Tensor:
    """Windows of tokens, int64 `(n, length)`: texts with room (`OWN`) for `count` tokens of a
    subject before `words`; None leaves one without.

    Raises:
        InputError: the words are not in the text.
    """
    ids = tokenize(tokenizer, length - count, texts)
    last = ids[:, -1:]  # the end token, or padding
    whole = np.concatenate([ids, np.repeat(last, count, 1)], 1)
    for i, (text, word) in enumerate(zip(texts, words, strict=True)):
        found = [0] if word is None else find(tokenizer, word, ids[i])
        if not found:
            raise InputError(f"the words {word!r:.60} are not in the text {text!r:.80}")
        if at := found[0]:
            whole[i] = np.concatenate([ids[i, :at], np.full(count, OWN), ids[i, at:]])
    return torch.from_numpy(whole)


def read(text_encoder: Any, ids: Tensor, tokens: Tensor, **how: Any) -> Any:
    """What the text tower makes of windows of `prompts` with tokens `(n, count, width)` in them;
    `how` are further arguments of `networks.clip.text`."""
    embeddings = directly(clip.EMBED_TOKENS, text_encoder, ids.clamp(min=0))
    own = ids == OWN
    number = (own.cumsum(1) - 1).clamp(min=0)[..., None]
    placed = tokens.gather(1, number.expand(-1, -1, tokens.shape[2]))
    made = torch.where(own[..., None], placed, embeddings)
    return clip.text(text_encoder.nn, text_encoder, text_encoder.config, ids, made, **how)
