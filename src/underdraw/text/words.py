"""Texts as token embeddings: what controls may change before the text encoder reads them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from underdraw.backends.contract import Array
from underdraw.backends.deltas import Deltas, check_paths
from underdraw.errors import ControlError


@dataclass(frozen=True, eq=False)
class Tokens:
    """The prompts of a call in windows of equally many tokens, before anything is computed."""

    texts: tuple[str, ...]
    prompts: int
    """How many of `texts` are prompts."""
    ids: np.ndarray
    """int64 `(texts, windows, tokens)`, as in `Words`."""
    tokenizer: Any


@dataclass(frozen=True, eq=False)
class Words:
    """The prompts of a call, then its negative prompts, in windows of equally many tokens.

    A control may put other embeddings in the place of some (textual inversion), or more tokens into
    each window (subject tokens); `ids` and `weights` then grow along.
    """

    texts: tuple[str, ...]
    prompts: int
    """How many of `texts` are prompts."""
    ids: np.ndarray
    """int64 `(texts, windows, tokens)`, with start, end and padding. Tokens that no vocabulary has,
    such as those of a subject, have numbers below 0."""
    weights: np.ndarray
    """float32, likewise: `(word:1.3)` weighs its tokens 1.3, all others weigh 1."""
    embeddings: Array
    """`(texts * windows, tokens, width)`, without positions."""
    tokenizer: Any
    text_encoder: Any
    components: Any = None
    """The pipeline's `controls.components.Components`; None without a pipeline."""
    leaves: Deltas = field(default_factory=dict)
    """Differences to layers of the text encoder, by their path (LoRA). A row of one with factors
    per row is a window: `texts * windows` of them."""


def checked(control: Any, words: Any, before: Words) -> Words:
    """What a control made of the words.

    Raises:
        ControlError: it is something else, its parts do not belong together, or a window has more
            tokens than the text encoder has positions.
    """
    if not isinstance(words, Words):
        raise ControlError(f"{control!r} at 'words' returned {type(words).__name__}; needed: Words")
    texts, windows, _ = before.ids.shape
    tokens, width = words.ids.shape[-1], before.embeddings.shape[2]
    shapes = (words.ids.shape, words.weights.shape, tuple(words.embeddings.shape))
    needed = ((texts, windows, tokens),) * 2 + ((texts * windows, tokens, width),)
    if shapes != needed:
        raise ControlError(
            f"{control!r} at 'words' returned ids, weights and embeddings of {shapes}; needed are "
            f"{needed}"
        )
    encoder = before.text_encoder
    check_paths(type(encoder).layout(encoder.config), words.leaves)
    most = encoder.config.max_position_embeddings
    if tokens > most:
        raise ControlError(
            f"{control!r} at 'words' made windows of {tokens} tokens; the text encoder has {most} "
            "positions"
        )
    return words
