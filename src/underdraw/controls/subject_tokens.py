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
from underdraw.models.overlay import Overlay, TunedSubject
from underdraw.text.words import Words

_CLOSE = "</w>"


def weights_of(components: Any, name: str | None) -> Any:
    """The subject weights of this name, or the only encoder: a `Blip2QFormerModel`, or where a name
    is given a `TunedSubject`.

    Raises:
        InputError: there are none, several, or none of this name; or they are for another base.
    """
    there = components.subjects
    listed = ", ".join(map(repr, there)) or "none"
    if name is None:
        encoders = [one for one in there.values() if not isinstance(one, TunedSubject)]
        if not encoders:
            raise InputError(
                "Subject: no subject weights are attached; pipe.load_subject(...) attaches them"
                if not there
                else f"Subject: of tuned subjects alone ({listed}) encoder= names one"
            )
        if len(encoders) > 1:
            raise InputError(
                f"Subject: several subject weights are attached ({listed}); give encoder="
            )
        return check_fit(components, encoders[0])
    if not checks.is_one_of(name, tuple(there)):
        raise InputError(f"Subject(encoder={name!r:.60}) is not attached; attached: {listed}")
    return check_fit(components, there[name])


def encoder_of(components: Any, name: str | None) -> Any:
    """The subject encoder of this name, or the only one.

    Raises:
        InputError: see `weights_of`; or the name is that of a tuned subject, which reads nothing.
    """
    found = weights_of(components, name)
    if isinstance(found, TunedSubject):
        raise InputError(
            f"Subject(encoder={name!r:.60}) is a tuned subject, which reads no pictures; give "
            "neither image nor embedding"
        )
    return found


def check_fit(components: Any, weights: Any) -> Any:
    """The weights, if their tokens are as wide as those of the text encoder and what they lay over
    networks fits them; otherwise raise an InputError."""
    text_encoder = components.text_encoder
    if isinstance(weights, TunedSubject):
        embedding = weights.embedding
        made = None if embedding is None else embedding.shape[2]
    else:
        made = weights.config.qformer_config.hidden_size
    taken = None if text_encoder is None else text_encoder.config.hidden_size
    if None not in (made, taken) and made != taken:
        raise InputError(
            f"subject weights make tokens of width {made}, the text encoder takes {taken}; they "
            "were trained for another base"
        )
    weights.overlay.check(components)
    return weights


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
    if part.image is None:
        return _tuned(components, part).shape[1]
    network = encoder_of(components, part.encoder)
    network.read(list(part.category), "Subject(category)")
    return network.config.num_query_tokens


def _tuned(components: Any, part: Any) -> np.ndarray:
    """The tokens of a subject without pictures, none where it has none of its own."""
    found = weights_of(components, part.encoder)
    if not isinstance(found, TunedSubject):
        raise InputError(
            f"Subject(encoder={part.encoder!r:.60}) is a subject encoder: give image or embedding"
        )
    if found.embedding is None:
        return np.zeros((1, 0, components.text_encoder.config.hidden_size), np.float32)
    return found.embedding


def overlay_of(components: Any, part: Any) -> Overlay:
    """What the weights of a subject lay over the networks. An embedding alone is of the only
    encoder, where there is one."""
    there = components.subjects
    if part.embedding is not None and part.encoder is None:
        encoders = [one for one in there.values() if not isinstance(one, TunedSubject)]
        return encoders[0].overlay if len(encoders) == 1 else Overlay()
    return weights_of(components, part.encoder).overlay


def embed(components: Any, parts: Sequence[Any]) -> tuple[Array, ...]:
    """The tokens of each of these subjects, `(1, tokens, width)` on the pipeline's device, float32.
    Their pictures are looked at together."""
    framework, nn = components.framework, components.nn
    seen: dict[str | None, list[Any]] = {}
    for part in parts:
        if part.image is not None:
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
        tokens = part.embedding if part.embedding is not None else rows.get(id(part))
        tokens = _tuned(components, part) if tokens is None else tokens
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
    return find(tokenizer, part.name, ids)


def find(tokenizer: Any, word: str, ids: np.ndarray) -> list[int]:
    """Where `word`, which may be several words, begins in a window of tokens, whole words only."""
    wanted = tokenizer(word, add_special_tokens=False).input_ids
    if not wanted:
        raise InputError(f"Subject(word={word!r:.60}) holds no word")
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
