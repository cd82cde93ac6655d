"""Prompts to the context the UNet attends to, with weights (`text.weighting`) and of any length.

`a BREAK b` starts a new window of the text encoder's size with b; a prompt that is too long for one
goes on in the next. Plain prompts, short enough for one, have exactly the plain tokenizer's ids.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from math import lcm
from typing import Any, NamedTuple

import numpy as np

from underdraw.backends.adapted import NO_DELTAS
from underdraw.backends.contract import Array
from underdraw.backends.deltas import Deltas
from underdraw.errors import InputError, InputTypeError
from underdraw.networks import clip
from underdraw.networks.program import Ask, directly
from underdraw.text.learned import Learned
from underdraw.text.tokens import KNOWN_LENGTH
from underdraw.text.weighting import apply_weights, parse_weights
from underdraw.text.words import Words, checked

_SIGNS = re.compile(r"[()\[\]\\]")
_BREAK = re.compile(r"\bBREAK\b")


class Encoded(NamedTuple):
    """What texts were encoded to."""

    context: Array
    """Of the prompts, `(prompts, tokens, width)`."""
    negative: Array | None
    """Of the negative prompts, likewise; None where there are none."""
    ids: tuple[np.ndarray, ...]
    """Of each prompt its own windows, int64 `(windows, tokens)`, as controls left them."""
    pooled: Array
    """Of each window of the prompts, and then of the negative ones, the output at its end token,
    `(windows, width)`."""


def encode_prompts(
    text_encoder: Any, tokenizer: Any, prompts: Sequence[str], *arguments: Any, **options: Any
) -> tuple[Array, Array | None]:
    """Contexts of prompts and of negative prompts; arguments as for `encode`."""
    found = encode(text_encoder, tokenizer, prompts, *arguments, **options)
    return found.context, found.negative


def encode(
    text_encoder: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    negatives: Sequence[str] = (),
    clip_skip: int | None = None,
    plain: bool = False,
    max_length: int | None = None,
    ask: Ask = directly,
    controls: Sequence[Any] = (),
    components: Any = None,
    cut: bool = False,
    beside: int | None = None,
    leaves: Deltas = NO_DELTAS,
    learned: Learned | None = None,
) -> Encoded:
    """Contexts of prompts and of negative prompts, each `(texts, tokens, width)`.

    Prompts may be weighted, `(word:1.3)`, and longer than the encoder's window of tokens: then all
    of them are encoded in equally many windows, which are joined along the tokens.

    Args:
        clip_skip: leave out that many last layers for the prompts (not for the negatives, as in
            diffusers).
        plain: read prompts as diffusers does: brackets are text, what does not fit is cut with a
            warning.
        max_length: tokens of a window, the tokenizer's if not given.
        ask: has the text encoder's programs run.
        controls: those with something to say about words (`controls.control.of_words`).
        components: of the pipeline, for these controls.
        cut: keep the first window of each prompt; negative prompts stay whole.
        beside: tokens of a context that is known, and that these stand beside.
        leaves: differences to layers of the text encoder, for all texts alike (LoRA).
        learned: words beside the tokenizer's, which is then a `LearnedTokenizer`.

    Raises:
        InputError: texts, tokenizer, text encoder and that context do not go together; nothing has
            been computed by then.
    """
    config, framework = text_encoder.config, text_encoder._framework
    layers = config.num_hidden_layers
    if clip_skip is not None and not 0 <= clip_skip < layers:
        raise InputError(f"clip_skip={clip_skip} is out of range; allowed: 0 .. {layers - 1}")
    count = len(prompts)
    read = read_texts(
        text_encoder, tokenizer, prompts, negatives, plain, max_length, controls, components, cut
    )
    ids, weights, own = read
    if beside is not None:
        check_lengths(ids.shape[1] * ids.shape[2], beside)
    device, nn = framework.device_of(text_encoder), framework.operations

    def rows(values: np.ndarray) -> Array:
        """An array of all windows, one below another."""
        return framework.array(values.reshape(-1, values.shape[-1]), device=device)

    with framework.no_grad():
        flat, embeddings = rows(np.maximum(ids, 0)), None
        if controls or learned is not None:
            embeddings = ask(clip.EMBED_TOKENS, text_encoder, flat)
        if learned is not None:
            places = ids.reshape(-1, ids.shape[-1])
            embeddings = learned.put_in(nn, framework, places, embeddings)
        if controls:
            texts = (*prompts, *negatives)
            words = Words(
                *(texts, count, ids, weights, embeddings, tokenizer, text_encoder, components),
                leaves=leaves,
            )
            for control in controls:
                words = checked(control, control.words(nn, words), words)
            ids, weights, leaves = words.ids, words.weights, words.leaves
            embeddings, flat = words.embeddings, rows(ids)
        windows, length = ids.shape[1:]
        mask = None
        if config.use_attention_mask:
            seen = framework.array(padding_mask(ids, tokenizer), device=device)
            mask = (seen.reshape(-1, 1, 1, length) - 1.0) * 1e9
        out = ask(clip.TEXT, text_encoder, flat, embeddings, mask, leaves)
        context = out.last
        if clip_skip:
            hidden = out.hidden_states[-(clip_skip + 1)][: count * windows]
            skipped = ask(clip.FINAL_NORM, text_encoder, hidden, leaves)
            context = nn.concat((skipped, context[count * windows :]), 0)
        context = context.reshape(ids.shape[0], windows * length, config.hidden_size)
        if (weights != 1).any():
            factors = framework.array(weights.reshape(ids.shape[0], -1), device=device)
            context = apply_weights(nn, context, factors)
    kept = tuple(row[:number] for row, number in zip(ids[:count], own, strict=False))
    return Encoded(context[:count], context[count:] if negatives else None, kept, out.pooled)


def check_lengths(tokens: int, others: int) -> None:
    """Raise an InputError unless one of two contexts is so many times as long as the other, so that
    the shorter one can be repeated, which attention to it does not notice."""
    if max(tokens, others) % min(tokens, others):
        raise InputError(
            f"prompt and negative prompt have {tokens} and {others} tokens; give both as text, or "
            "embeddings of equal length"
        )


def read_texts(
    text_encoder: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    negatives: Sequence[str] = (),
    plain: bool = False,
    max_length: int | None = None,
    controls: Sequence[Any] = (),
    components: Any = None,
    cut: bool = False,
) -> Tokenized:
    """What `encode`, which tells the arguments, makes of texts before any network reads them.

    Raises:
        InputError: texts, tokenizer and text encoder do not go together.
    """
    config = text_encoder.config
    if max_length is None and tokenizer.model_max_length > KNOWN_LENGTH:
        max_length = config.max_position_embeddings  # the tokenizer's files do not tell
    room = [
        sum(control.room(components, prompt, number) for control in controls)
        for number, prompt in enumerate(prompts)
    ]
    most = len(prompts) if cut else 0
    read = _tokenized(tokenizer, [*prompts, *negatives], not plain, plain, max_length, room, most)
    if read.ids.max() >= config.vocab_size:
        raise InputError(
            f"tokenizer: it gives token {read.ids.max()}, the text encoder knows "
            f"{config.vocab_size}"
        )
    if read.ids.shape[2] > config.max_position_embeddings:
        raise InputError(
            f"tokenizer: model_max_length={read.ids.shape[2]}, the text encoder takes "
            f"{config.max_position_embeddings}"
        )
    return read


def tokenize_prompts(
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    weighting: bool = True,
    truncate: bool = False,
    max_length: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and weights of prompts; give prompts and negative prompts in one call, so that all
    get the same number of windows. Prompts that need fewer have theirs repeated: attention over
    repeated tokens is the same average as over each of them once, so an image does not depend on
    how long the other prompts of its batch are.

    Args:
        tokenizer: ours, or any with the same call, as transformers'.
        prompts: at least one.
        weighting: False takes every sign and BREAK as text.
        truncate: keep the first window only, as diffusers does, with a warning that names what was
            cut; False makes as many windows as needed.
        max_length: tokens of a window, start and end included; None: `tokenizer.model_max_length`.

    Returns:
        ids int64 and weights float32, both `(prompts, windows, max_length)`. Start, end and padding
        have weight 1. To use them as one context, encode each window and join along the tokens.
    Raises:
        InputError, InputTypeError: no prompts, something that is no text, or a broken weight.
    """
    return _tokenized(tokenizer, prompts, weighting, truncate, max_length)[:2]


class Tokenized(NamedTuple):
    """Windows of tokens, as `tokenize_prompts` gives them."""

    ids: np.ndarray
    weights: np.ndarray
    own: tuple[int, ...]
    """How many windows each text has before they are repeated."""


def _tokenized(
    tokenizer: Any,
    prompts: Sequence[str],
    weighting: bool,
    truncate: bool,
    max_length: int | None,
    room: Sequence[int] = (),
    cut: int = 0,
) -> Tokenized:
    """As `tokenize_prompts`.

    Args:
        room: tokens that stay free at the end of each window of the first prompts, for what
            controls put in.
        cut: of so many first prompts the first window alone is kept, without a word about it.
    """
    if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
        raise InputTypeError(f"prompts must be a list of strings, not {prompts!r:.80}")
    if not prompts:
        raise InputError("prompts is empty; at least one is needed")
    length = tokenizer.model_max_length if max_length is None else max_length
    if not 3 <= length <= KNOWN_LENGTH:
        raise InputError(f"max_length={length}: a window has 3 to 100000 tokens")
    batch = []
    for number, prompt in enumerate(prompts):
        free = room[number] if number < len(room) else 0
        if free > length - 3:
            raise InputError(
                f"prompt={prompt!r:.60}: controls put {free} tokens into it, and its window has "
                f"{length}; allowed: {length - 3}"
            )
        windows = _windows(tokenizer, prompt, length - 2 - free, weighting)
        if number < cut:
            windows = windows[:1]
        if truncate and len(windows) > 1:
            lost = tokenizer.decode([token for window in windows[1:] for token, _ in window])
            warnings.warn(
                f"only the first {length} tokens of a prompt are used; cut: {lost!r}", stacklevel=3
            )
        batch.append(windows[:1] if truncate else windows)

    shape = (len(batch), lcm(*map(len, batch)), length)
    ids = np.full(shape, tokenizer.pad_token_id, np.int64)
    ids[:, :, 0] = tokenizer.bos_token_id
    weights = np.ones(shape, np.float32)
    for row, windows in enumerate(batch):
        for column in range(shape[1]):
            window = windows[column % len(windows)]
            end = len(window) + 1
            ids[row, column, 1:end] = [token for token, _ in window]
            ids[row, column, end] = tokenizer.eos_token_id
            weights[row, column, 1:end] = [weight for _, weight in window]
    return Tokenized(ids, weights, tuple(map(len, batch)))


def _windows(
    tokenizer: Any, prompt: str, room: int, weighting: bool
) -> list[list[tuple[int, float]]]:
    """(id, weight) of each token, in windows of at most `room`; at least one window."""
    parts: list[list[tuple[int, float]]] = [[]]
    runs = parse_weights(prompt) if weighting and _SIGNS.search(prompt) else [(prompt, 1.0)]
    for text, weight in runs:
        for number, piece in enumerate(_BREAK.split(text) if weighting else [text]):
            if number:
                parts.append([])
            ids = tokenizer(piece, add_special_tokens=False).input_ids
            parts[-1].extend((token, weight) for token in ids)
    cut = [part[at : at + room] for part in parts for at in range(0, len(part), room)]
    return cut or [[]]


def padding_mask(ids: Any, tokenizer: Any) -> Any:
    """1 up to and including the first end token of each window, 0 behind it, float32."""
    ended = (ids == tokenizer.eos_token_id).cumsum(-1)
    return ((ended == 0) | ((ended == 1) & (ids == tokenizer.eos_token_id))).astype("float32")
