"""Which tokens of one prompt stand for which of another, and where a phrase stands in a prompt.

Positions are those in the context: of all windows of a prompt joined (`text.prompts`). Words are
the tokenizer's own: letters, single digits, runs of other signs, each of one or several tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any, NamedTuple

import numpy as np

from underdraw.errors import InputError
from underdraw.text.prompts import tokenize_prompts

_CLOSE = "</w>"


class Words(NamedTuple):
    """A prompt's words and their places in its context."""

    prompt: str
    windows: int
    length: int
    """Tokens of a window, start and end included."""
    ids: tuple[tuple[int, ...], ...]
    """Token ids of each word."""
    places: tuple[tuple[int, ...], ...]
    """Positions of these tokens."""
    texts: tuple[str, ...]
    ends: tuple[int, ...]
    """Position of the end token of each window; behind it there is padding."""

    @property
    def count(self) -> int:
        """Positions of the context, before windows are repeated for longer prompts."""
        return self.windows * self.length


PUT_IN = "<>"
"""The text of a token that no vocabulary has, as those of a subject."""


def words(tokenizer: Any, prompt: str, plain: bool = False, ids: np.ndarray | None = None) -> Words:
    """The words of a prompt as `encode_prompts` reads it; `plain` as there.

    Args:
        ids: its own windows of tokens where these are known, `(windows, tokens)`; those below 0 are
            words by themselves.
    """
    rows: Any = ids
    if rows is None:
        rows, _ = tokenize_prompts(tokenizer, [prompt], weighting=not plain)
        rows = rows[0, :1] if plain else rows[0]
    windows, length = rows.shape
    found: list[list[tuple[int, int]]] = []
    ends, open_word = [], False
    for number, window in enumerate(rows.tolist()):
        end = window.index(tokenizer.eos_token_id, 1)
        ends.append(number * length + end)
        for place in range(1, end):
            known = window[place] >= 0
            token = tokenizer.convert_ids_to_tokens(window[place]) if known else PUT_IN
            # Added tokens, such as a learned "<cat-toy>", are words without the closing sign.
            added = not token.endswith(_CLOSE) and token.startswith("<") and token.endswith(">")
            if not open_word or added:
                found.append([])
            found[-1].append((window[place], number * length + place))
            open_word = not (added or token.endswith(_CLOSE))
    return Words(
        prompt,
        windows,
        length,
        tuple(tuple(token for token, _ in word) for word in found),
        tuple(tuple(place for _, place in word) for word in found),
        tuple(
            PUT_IN if word[0][0] < 0 else tokenizer.decode([token for token, _ in word])
            for word in found
        ),
        tuple(ends),
    )


def find(tokenizer: Any, phrase: str, inside: Words) -> list[int]:
    """Positions of the tokens of a phrase (whole words, side by side), wherever it occurs.

    Raises:
        InputError: the phrase has no words.
    """
    wanted = tuple(tokenizer(phrase, add_special_tokens=False).input_ids)
    if not wanted:
        raise InputError(f"{phrase!r} holds no word")
    places: list[int] = []
    for first in range(len(inside.ids)):
        read: tuple[int, ...] = ()
        for last in range(first, len(inside.ids)):
            read += inside.ids[last]
            if len(read) >= len(wanted):
                break
        if read == wanted:
            places += [place for word in inside.places[first : last + 1] for place in word]
    return sorted(set(places))


def align(source: Words, target: Words, replace: bool) -> tuple[np.ndarray, np.ndarray]:
    """What each token of the target takes from the source.

    Words that both prompts have, in order, take from each other. Where other words stand in the
    target instead of some of the source, they take from those with `replace` (Hertz et al. 2022,
    "word swap"): word by word where equally many, else all from all; a word of other length shares
    out what the replaced one had. Without it, and for words that are only added, nothing is taken
    ("adding a phrase").

    Returns:
        `mapping (tokens, tokens)` float32, source by target, and `taken (tokens,)` bool, whether a
        token of the target takes anything.
    Raises:
        InputError: the prompts need different numbers of windows.
    """
    if source.windows != target.windows:
        raise InputError(
            f"prompt={target.prompt!r:.80} needs {target.windows} windows of {target.length} "
            f"tokens, its source {source.prompt!r:.80} {source.windows}; an attention edit needs "
            "prompts of equally many (BREAK begins a new one)"
        )
    mapping = np.zeros((source.count, target.count), np.float32)
    matcher = SequenceMatcher(None, source.ids, target.ids, autojunk=False)
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind == "equal" or (kind == "replace" and replace and b - a == d - c):
            for old, new in zip(range(a, b), range(c, d), strict=True):
                _connect(mapping, source.places[old], target.places[new])
        elif kind == "replace" and replace:
            olds = [place for word in source.places[a:b] for place in word]
            _connect(mapping, olds, [place for word in target.places[c:d] for place in word])
    # Start to start and end to end; padding only where both have it: it differs by position.
    for window, (old, new) in enumerate(zip(source.ends, target.ends, strict=True)):
        start = window * target.length
        mapping[start, start] = mapping[old, new] = 1
        for place in range(max(old, new) + 1, start + target.length):
            mapping[place, place] = 1
    return mapping, np.asarray(mapping.any(0))


def _connect(mapping: np.ndarray, olds: Sequence[int], news: Sequence[int]) -> None:
    if len(olds) == len(news):
        mapping[olds, news] = 1
    else:
        mapping[np.ix_(olds, news)] = 1 / len(news)
