"""The tokens of a subject: made of its pictures, and put between those of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from underdraw import checks
from underdraw.backends.contract import Array, Operations
from underdraw.errors import InputError
from underdraw.models.blip_processor import BlipImageProcessor
from underdraw.text.words import Words

_CLOSE = "</w>"


def encoder_of(components: Any, name: str | None) -> Any:
    """The subject weights of this name, or the only ones.

    Raises:
        InputError: there are none, several, or none of this name; or their vocabulary is not there,
            or they make tokens that the text encoder cannot read.
    """
    there = components.subjects
    listed = ", ".join(map(repr, there)) or "none"
    if not there:
        raise InputError(
            "Subject: no subject weights are attached; pipe.load_subject(...) attaches them"
        )
    if name is None and len(there) > 1:
        raise InputError(f"Subject: several subject weights are attached ({listed}); give encoder=")
    if name is not None and not checks.is_one_of(name, tuple(there)):
        raise InputError(f"Subject(encoder={name!r:.60}) is not attached; attached: {listed}")
    network = next(iter(there.values())) if name is None else there[name]
    check_fit(components, network)
    return network


def check_fit(components: Any, network: Any) -> None:
    """Raise an InputError where tokens of these weights have another width than those of the text
    encoder."""
    text_encoder = components.text_encoder
    if text_encoder is None:
        return
    made = network.config.qformer_config.hidden_size
    taken = text_encoder.config.hidden_size
    if made != taken:
        raise InputError(
            f"subject weights make tokens of width {made}, the text encoder takes {taken}; they "
            "were trained for another base"
        )


def need(components: Any, part: Any) -> int:
    """How many tokens a subject has; everything about it that can be wrong is told here.

    Raises:
        InputError: see `encoder_of`; or an embedding of another width.
    """
    if part.embedding is not None:
        width = components.text_encoder.config.hidden_size
        shape = (None, None, width)
        checks.array("Subject(embedding)", part.embedding, shape, components.framework)
        return part.embedding.shape[1]
    network = encoder_of(components, part.encoder)
    network.read(list(part.category), "Subject(category)")
    return network.config.num_query_tokens


def embed(components: Any, parts: Sequence[Any]) -> tuple[Array, ...]:
    """The tokens of each of these subjects, `(1, tokens, width)` on the pipeline's device, float32.
    Their pictures are looked at together."""
    framework, nn = components.framework, components.nn
    seen: dict[str | None, list[Any]] = {}
    for part in parts:
        if part.embedding is None:
            seen.setdefault(part.encoder, []).append(part)
    rows: dict[int, Array] = {}
    for name, those in seen.items():
        pictures = [picture for part in those for picture in part.image]
        categories = [category for part in those for category in part.category]
        made = encode(components, encoder_of(components, name), pictures, categories)
        first = 0
        for part in those:
            rows[id(part)] = made[first : first + len(part.image)]
            first += len(part.image)
    found = []
    for part in parts:
        tokens = part.embedding if part.embedding is not None else rows[id(part)]
        tokens = nn.float32(framework.array(tokens, device=components.device))
        if len(part.shares) > 1:
            shares = np.array(part.shares, np.float32)[:, None, None] * len(part.shares)
            tokens = nn.mean(tokens * framework.array(shares, device=components.device), (0,))
        found.append(tokens)
    return tuple(found)


def encode(components: Any, network: Any, pictures: Any, categories: Any) -> Array:
    """Tokens of several pictures with their categories, `(pictures, tokens, width)`."""
    ids, keep = network.read(list(categories))
    side = network.config.vision_config.image_size
    processor = network.image_processor or components.subject_processor or BlipImageProcessor()
    pixels = processor(list(pictures), size={"height": side, "width": side})["pixel_values"]
    framework = network._framework
    with framework.no_grad(), components.borrow(network):
        image = framework.array(np.asarray(pixels), dtype=network.dtype, device=network.device)
        return network.encode(image, ids, keep, components.ask)


# -- in a prompt -----------------------------------------------------------------------------------
def end_of(tokenizer: Any, ids: np.ndarray) -> int:
    """Position of the end token of a window."""
    return int(np.argmax(ids[1:] == tokenizer.eos_token_id)) + 1


def place(tokenizer: Any, part: Any, ids: np.ndarray) -> list[int]:
    """Where the words of a subject begin in a window of tokens, whole words only."""
    wanted = tokenizer(part.name, add_special_tokens=False).input_ids
    if not wanted:
        raise InputError(f"Subject(word={part.name!r:.60}) holds no word")
    row, found = ids.tolist(), []
    for at in range(1, end_of(tokenizer, ids) - len(wanted) + 1):
        if row[at : at + len(wanted)] != wanted:
            continue
        before = tokenizer.convert_ids_to_tokens(row[at - 1]) if row[at - 1] >= 0 else _CLOSE
        if at == 1 or before.endswith((_CLOSE, ">")):
            found.append(at)
    return found


def numbers_of(count: int, first: int) -> np.ndarray:
    """Ids of tokens of a subject, which no vocabulary has: -1 - `first` and those below."""
    return -1 - first - np.arange(count)


def put_in(tokenizer: Any, prompt: str, row: np.ndarray, at: int, new: np.ndarray) -> np.ndarray:
    """A window of tokens with others from a position on; as many of its padding go.

    Raises:
        InputError: it has not so much padding.
    """
    count, length = len(new), len(row)
    end = end_of(tokenizer, row)
    if end + 1 + count > length:
        raise InputError(
            f"prompt={prompt!r:.60} has {end - 1} tokens in a window of {length}; "
            f"beside the {count} of a subject {length - count - 2} fit"
        )
    return np.concatenate([row[:at], new, row[at:]])[:length]


def insert(
    nn: Operations, words: Words, text: int, window: int, at: int, tokens: Array, first: int
) -> Words:
    """Tokens `(1, n, width)` from position `at` of a window on, as `put_in` does with their numbers
    (`numbers_of`)."""
    count, length = tokens.shape[1], words.ids.shape[2]
    row, new = words.ids[text, window], numbers_of(count, first)
    ids, weights = words.ids.copy(), words.weights.copy()
    ids[text, window] = put_in(words.tokenizer, words.texts[text], row, at, new)
    old = weights[text, window]
    ones = np.ones(count, np.float32)
    weights[text, window] = np.concatenate([old[:at], ones, old[at:]])[:length]
    number = text * words.ids.shape[1] + window
    rows = words.embeddings
    mine = rows[number : number + 1]
    tokens = nn.cast(tokens, rows)
    made = nn.concat((mine[:, :at], tokens, mine[:, at : length - count]), 1)
    parts = (rows[:number], made, rows[number + 1 :])
    embeddings = nn.concat([part for part in parts if part.shape[0]], 0)
    return replace(words, ids=ids, weights=weights, embeddings=embeddings)
