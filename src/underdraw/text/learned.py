"""Words that were learned beside a vocabulary (textual inversion, Gal et al. 2022).

A learned word is one vector or several, which take the places of tokens in a prompt. They have ids
below 0, which no vocabulary has; the text encoder and the tokenizer stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from underdraw.backends.contract import Array

FIRST = -(2**40)
"""The id of the first vector of the first word, and those below; ids of subjects are above."""
APART = 2**16
"""Between the ids of two words; more than a word has vectors."""


@dataclass(frozen=True, eq=False)
class Learned:
    """Words with their vectors, float32 `(vectors, width)`."""

    vectors: Mapping[str, np.ndarray]

    @cached_property
    def ids(self) -> dict[str, list[int]]:
        """Ids of the vectors of each word, in small letters."""
        return {
            word.lower(): [FIRST - number * APART - i for i in range(len(rows))]
            for number, (word, rows) in enumerate(self.vectors.items())
        }

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Finds the words in a text, the longest first; a letter or digit at an end of a word is
        followed by none."""
        parts = (
            (r"(?<!\w)" if word[0].isalnum() else "")
            + re.escape(word)
            + (r"(?!\w)" if word[-1].isalnum() else "")
            for word in sorted(self.vectors, key=len, reverse=True)
        )
        return re.compile(f"({'|'.join(parts)})", re.IGNORECASE)

    def name(self, token: int) -> str | None:
        """The word whose vector an id is."""
        number = (FIRST - token) // APART
        words = list(self.vectors)
        return words[number] if token <= FIRST and number < len(words) else None

    def put_in(self, nn: Any, framework: Any, ids: np.ndarray, embeddings: Array) -> Array:
        """Embeddings `(rows, tokens, width)` of `ids (rows, tokens)` with the vectors in their
        places."""
        rows, places = np.nonzero(ids <= FIRST)
        if not len(rows):
            return embeddings
        every = np.concatenate(list(self.vectors.values()))
        known = [token for own in self.ids.values() for token in own]
        table = dict(zip(known, every, strict=True))
        values = np.zeros(tuple(embeddings.shape), np.float32)
        values[rows, places] = [table[token] for token in ids[rows, places].tolist()]
        there = (ids <= FIRST)[..., None]
        device = getattr(embeddings, "device", None)
        values, there = (framework.array(x, device=device) for x in (values, there))
        return nn.where(there, nn.cast(values, embeddings), embeddings)


class LearnedTokenizer:
    """A tokenizer that knows learned words in prompts; all else of it is the tokenizer's own."""

    def __init__(self, tokenizer: Any, learned: Learned) -> None:
        self.tokenizer, self.learned = tokenizer, learned

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, text: Any, **options: Any) -> Any:
        """As the tokenizer; a text without start and end, which is how prompts are read
        (`text.prompts`), may hold learned words."""
        found = self.tokenizer(text, **options)
        if not isinstance(text, str) or options != {"add_special_tokens": False}:
            return found
        parts = self.learned.pattern.split(text)
        if len(parts) == 1:
            return found
        ids: list[int] = []
        for i, part in enumerate(parts):
            if i % 2:
                ids += self.learned.ids[part.lower()]
            elif part.strip():
                ids += self.tokenizer(part, **options).input_ids
        return type(found)(input_ids=ids, attention_mask=[1] * len(ids))

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        """Tokens as texts; a learned word is itself for each of its vectors."""
        if isinstance(ids, int | np.integer):
            name = self.learned.name(int(ids))
            return self.tokenizer.convert_ids_to_tokens(ids) if name is None else f"<{name}>"
        return [self.convert_ids_to_tokens(one) for one in ids]

    def decode(self, ids: Sequence[int], **options: Any) -> str:
        """The text of ids, learned words once for all their vectors."""
        texts: list[str] = []
        run: list[int] = []
        for token in [*map(int, ids), None]:
            name = None if token is None else self.learned.name(token)
            if (token is None or name is not None) and run:
                texts.append(self.tokenizer.decode(run, **options))
                run = []
            if name is not None:
                if token is not None and (FIRST - token) % APART == 0:
                    texts.append(name)
            elif token is not None:
                run.append(token)
        return " ".join(texts)
