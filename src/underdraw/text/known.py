"""Words of a text that a network never met in training."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterable

_APART = re.compile(r"<[^<>]*>|:\s*[+-]?[\d.]+\s*(?=[)\]])")
"""What is no word: placeholders of embeddings, weights in brackets."""
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def unknown_words(texts: Iterable[str], known: Collection[str]) -> list[str]:
    """Words of prompts that are not known, in small letters, each once and in order."""
    found = (word for text in texts for word in _WORD.findall(_APART.sub(" ", text.lower())))
    return [word for word in dict.fromkeys(found) if word not in known]


def warn_of_unknown(texts: Iterable[str], known: Collection[str]) -> None:
    """Warn of words that are not known, and list those that are; not where nothing is."""
    if known and (unknown := unknown_words(texts, known)):
        warnings.warn(
            f"this model never saw the words {', '.join(unknown)}, so they mean nothing to it; it "
            f"knows: {', '.join(known)}",
            stacklevel=2,
        )
