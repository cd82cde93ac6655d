"""Prompts to the context the UNet attends to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from underdraw.backends.contract import Array
from underdraw.errors import InputError
from underdraw.networks import clip
from underdraw.text.prompts import apply_weights, tokenize_prompts


def encode_prompts(
    text_encoder: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    negatives: Sequence[str] = (),
    clip_skip: int | None = None,
    plain: bool = False,
    max_length: int | None = None,
) -> tuple[Array, Array | None]:
    """Contexts of prompts and of negative prompts, each `(texts, tokens, width)`.

    Prompts may be weighted, `(word:1.3)`, and longer than the encoder's window of tokens: then all
    of them are encoded in equally many windows, which are joined along the tokens.

    Args:
        clip_skip: leave out that many last layers for the prompts (not for the negatives, as the
            peer).
        plain: read prompts as the peer does: brackets are text, what does not fit is cut with a
            warning.
        max_length: tokens of a window, the tokenizer's if not given.
    """
    config, framework = text_encoder.config, text_encoder._framework
    layers = config.num_hidden_layers
    if clip_skip is not None and not 0 <= clip_skip < layers:
        raise InputError(f"clip_skip={clip_skip} is out of range; allowed: 0 .. {layers - 1}")
    ids, weights = tokenize_prompts(
        tokenizer,
        [*prompts, *negatives],
        weighting=not plain,
        truncate=plain,
        max_length=max_length,
    )
    if ids.max() >= config.vocab_size:
        raise InputError(
            f"tokenizer: it gives token {ids.max()}, the text encoder knows {config.vocab_size}"
        )
    if ids.shape[2] > config.max_position_embeddings:
        raise InputError(
            f"tokenizer: model_max_length={ids.shape[2]}, the text encoder takes "
            f"{config.max_position_embeddings}"
        )

    def encode(rows: slice, skip: int | None) -> Array:
        texts, windows, length = ids[rows].shape
        flat = framework.array(
            ids[rows].reshape(-1, length), device=framework.device_of(text_encoder)
        )
        mask = None
        if config.use_attention_mask:
            seen = framework.array(padding_mask(ids[rows], tokenizer), device=flat.device)
            mask = (seen.reshape(-1, 1, 1, length) - 1.0) * 1e9
        nn = text_encoder.nn
        with framework.no_grad():
            out = clip.text(nn, text_encoder, config, flat, mask=mask)
            context = out.last
            if skip:
                hidden = out.hidden_states[-(skip + 1)]
                context = clip.final_norm(nn, text_encoder, config, hidden)
            context = context.reshape(texts, windows * length, config.hidden_size)
            if (weights[rows] != 1).any():
                factors = framework.array(weights[rows].reshape(texts, -1), device=flat.device)
                context = apply_weights(nn, context, factors)
        return context

    count = len(prompts)
    positive = encode(slice(0, count), clip_skip)
    return positive, (encode(slice(count, None), None) if negatives else None)


def padding_mask(ids: Any, tokenizer: Any) -> Any:
    """1 up to and including the first end token of each window, 0 behind it, float32."""
    ended = (ids == tokenizer.eos_token_id).cumsum(-1)
    return ((ended == 0) | ((ended == 1) & (ids == tokenizer.eos_token_id))).astype("float32")
