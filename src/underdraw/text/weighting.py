"""Weights of words in prompts: reading them, and applying them to what the text encoder gives.

Syntax, the one most interfaces share:

    (word)       1.1 times as strong          (word:1.3)   1.3 times as strong
    [word]       1 / 1.1 times as strong      ((a:1.2) b)  nesting multiplies
    \\( \\) \\[ \\] \\\\   the sign itself

A prompt without it is one run of weight 1.
"""

from __future__ import annotations

import re
from typing import Any

from underdraw.checks import shown
from underdraw.errors import InputError

FACTOR = 1.1
LARGEST = 10.0  # a larger number is a slip of the keyboard: (word:13) for (word:1.3)
_PIECE = re.compile(r"\\[()\[\]\\]|[()\[\]]|[^\\()\[\]]+|\\")
_TAIL = re.compile(r":(\s*)([^:]*)$")
_NUMBER = re.compile(r"[0-9]+\.?[0-9]*|\.[0-9]+")
_LIKE_NUMBER = re.compile(r"[-+.0-9]|(nan|inf(inity)?)$", re.IGNORECASE)
_CLOSES = {"(": ")", "[": "]"}


def parse_weights(prompt: str, name: str = "prompt") -> list[tuple[str, float]]:
    """Split a prompt into runs of equal weight, in order; texts without the syntax's signs. `name`
    is that of the argument, for errors.

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
                raise _unbalanced(f"{name}={shown(prompt)}", piece, column)
            bracket, _, first = opened.pop()
            factor = FACTOR if bracket == "(" else 1 / FACTOR
            if text_before:  # a weight stands in the bracket's own text, not in one inside it
                text, weight = runs[-1]
                text, number = _split_number(text, f"{name}={shown(prompt)}", bracket)
                runs[-1] = (text, weight)
                factor = factor if number is None else number
            runs[first:] = [(text, weight * factor) for text, weight in runs[first:]]
        else:
            runs.append((piece[-1] if piece[0] == "\\" else piece, 1.0))
        text_before = piece not in ("(", "[", ")", "]")
    if opened:
        raise _unbalanced(f"{name}={shown(prompt)}", *opened[-1][:2])

    merged: list[tuple[str, float]] = []
    for text, weight in runs:
        if merged and merged[-1][1] == weight:
            merged[-1] = (merged[-1][0] + text, weight)
        elif text:
            merged.append((text, weight))
    return merged or [("", 1.0)]


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


def _split_number(text: str, where: str, bracket: str) -> tuple[str, float | None]:
    """`"word:1.3"` -> `("word", 1.3)`; None where what follows the last colon is text, too.
    `where` begins the message of an error."""
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
        f"{where}: weight {shown(tail)} after {shown(text[: found.start()])}: {allowed}"
    )


def _unbalanced(where: str, bracket: str, column: int) -> InputError:
    what = "is never closed" if bracket in _CLOSES else "closes nothing"
    return InputError(
        f"{where}: {bracket!r} at character {column + 1} {what};"
        f" write \\{bracket} for the sign itself"
    )
