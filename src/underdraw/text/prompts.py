"""Prompts with weights and of any length, as token ids in windows of the text encoder's size.

Syntax, the one most interfaces share:

    (word)       1.1 times as strong          (word:1.3)   1.3 times as strong
    [word]       1 / 1.1 times as strong      ((a:1.2) b)  nesting multiplies
    \\( \\) \\[ \\] \\\\   the sign itself              a BREAK b    b starts a new window

A prompt without it, short enough for one window, gives exactly the plain tokenizer's ids.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from math import lcm
from typing import Any

import numpy as np

from underdraw.errors import InputError, InputTypeError

FACTOR = 1.1
LARGEST = 10.0  # a larger number is a slip of the keyboard: (word:13) for (word:1.3)
_PIECE = re.compile(r"\\[()\[\]\\]|[()\[\]]|[^\\()\[\]]+|\\")
_TAIL = re.compile(r":(\s*)([^:]*)$")
_NUMBER = re.compile(r"[0-9]+\.?[0-9]*|\.[0-9]+")
_LIKE_NUMBER = re.compile(r"[-+.0-9]|(nan|inf(inity)?)$", re.IGNORECASE)
_BREAK = re.compile(r"\bBREAK\b")
_CLOSES = {"(": ")", "[": "]"}


def parse_weights(prompt: str) -> list[tuple[str, float]]:
    """Split a prompt into runs of equal weight, in order; texts without the syntax's signs.

    Raises:
        InputError: a bracket that does not close or was never opened, or a weight which is no
            number in [0, 10]. Words behind a colon and a space, as in `(a sign: hi)`, are text.
    """
    runs: list[tuple[str, float]] = []
    opened: list[tuple[str, int, int]] = []  # bracket, its column, how many runs came before it
    text_before = False
    for found in _PIECE.finditer(prompt):
        piece, column = found[0], found.start()
        if piece in _CLOSES:
            opened.append((piece, column, len(runs)))
        elif piece in (")", "]"):
            if not opened or _CLOSES[opened[-1][0]] != piece:
                raise _unbalanced(prompt, piece, column)
            bracket, _, first = opened.pop()
            factor = FACTOR if bracket == "(" else 1 / FACTOR
            if text_before:  # a weight stands in the bracket's own text, not in one inside it
                text, weight = runs[-1]
                text, number = _split_number(text, prompt, bracket)
                runs[-1] = (text, weight)
                factor = factor if number is None else number
            runs[first:] = [(text, weight * factor) for text, weight in runs[first:]]
        else:
            runs.append((piece[-1] if piece[0] == "\\" else piece, 1.0))
        text_before = piece not in ("(", "[", ")", "]")
    if opened:
        raise _unbalanced(prompt, *opened[-1][:2])

    merged: list[tuple[str, float]] = []
    for text, weight in runs:
        if merged and merged[-1][1] == weight:
            merged[-1] = (merged[-1][0] + text, weight)
        elif text:
            merged.append((text, weight))
    return merged or [("", 1.0)]


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
        weighting: read the syntax above; False takes every sign and BREAK as text.
        truncate: keep the first window only, as the peer does, with a warning that names what was
            cut; False makes as many windows as needed.
        max_length: tokens of a window, start and end included; None: `tokenizer.model_max_length`.

    Returns:
        ids int64 and weights float32, both `(prompts, windows, max_length)`. Start, end and padding
        have weight 1. To use them as one context, encode each window and join along the tokens.
    Raises:
        InputError, InputTypeError: no prompts, something that is no text, or a broken weight.
    """
    if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
        raise InputTypeError(f"prompts must be a list of strings, not {prompts!r:.80}")
    if not prompts:
        raise InputError("prompts is empty; at least one is needed")
    length = tokenizer.model_max_length if max_length is None else max_length
    if not 3 <= length <= 100_000:
        raise InputError(f"max_length={length}: a window has 3 to 100000 tokens")
    batch = []
    for prompt in prompts:
        windows = _windows(tokenizer, prompt, length - 2, weighting)
        if truncate and len(windows) > 1:
            cut = tokenizer.decode([token for window in windows[1:] for token, _ in window])
            warnings.warn(
                f"only the first {length} tokens of a prompt are used; cut: {cut!r}", stacklevel=2
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
    return ids, weights


def apply_weights(nn: Any, context: Any, weights: Any) -> Any:
    """Scale the tokens of a context by their weights without changing its overall strength.

    Each token's embedding is multiplied by its weight, then the whole context of an image is
    multiplied by one factor that restores its mean, the convention of the common interfaces. Here
    every image has its own factor, and tokens count by the size of their mean: where the means have
    one sign this is the convention's factor; where signs are mixed the plain mean nearly cancels
    and its ratio is arbitrary, while this one stays between 1 / max and 1 / min weight.

    Args:
        nn: a backend's operations.
        context: `(batch, tokens, width)`, all windows joined.
        weights: `(batch, tokens)`, not negative.
    """
    x, weights = nn.float32(context), nn.float32(weights)[:, :, None]
    size = nn.mean(x, (2,))
    size = nn.where(size < 0, -size, size)
    before, after = nn.mean(size, (1,)), nn.mean(size * weights, (1,))
    factor = nn.where(after > 0, before / after, 1.0)
    return nn.cast(x * weights * factor, context)


def _windows(
    tokenizer: Any, prompt: str, room: int, weighting: bool
) -> list[list[tuple[int, float]]]:
    """(id, weight) of each token, in windows of at most `room`; at least one window."""
    parts: list[list[tuple[int, float]]] = [[]]
    for text, weight in parse_weights(prompt) if weighting else [(prompt, 1.0)]:
        for number, piece in enumerate(_BREAK.split(text) if weighting else [text]):
            if number:
                parts.append([])
            ids = tokenizer(piece, add_special_tokens=False).input_ids
            parts[-1].extend((token, weight) for token in ids)
    cut = [part[at : at + room] for part in parts for at in range(0, len(part), room)]
    return cut or [[]]


def _split_number(text: str, prompt: str, bracket: str) -> tuple[str, float | None]:
    """`"word:1.3"` -> `("word", 1.3)`; None where what follows the last colon is text, too."""
    found = _TAIL.search(text)
    if not found:
        return text, None
    gap, tail = found[1], found[2].strip()
    if bracket == "(" and _NUMBER.fullmatch(tail) and float(tail) <= LARGEST:
        return text[: found.start()], float(tail)
    wrong = _LIKE_NUMBER.match(tail) or (bracket == "(" and not (gap and tail))
    if not wrong:
        return text, None
    allowed = (
        "no number goes into square brackets; write (word:0.8)"
        if bracket == "["
        else f"allowed is a number from 0 to {LARGEST:g}, as in (word:1.3)"
    )
    raise InputError(
        f"prompt={prompt!r}: weight {tail!r} after {text[: found.start()]!r}: {allowed}"
    )


def _unbalanced(prompt: str, bracket: str, column: int) -> InputError:
    what = "is never closed" if bracket in _CLOSES else "closes nothing"
    return InputError(
        f"prompt={prompt!r}: {bracket!r} at character {column + 1} {what};"
        f" write \\{bracket} for the sign itself"
    )
