"""CLIP's tokenizer under its familiar name, on the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from underdraw import backends, checks
from underdraw.errors import InputError, InputTypeError
from underdraw.text.stored import StoredTokenizer
from underdraw.text.tokens import KNOWN_LENGTH

_PADDING = {False: None, "do_not_pad": None, True: "longest"}
_PADDING |= {"longest": "longest", "max_length": "max_length"}
_TRUNCATION = {False: False, "do_not_truncate": False, True: True}
_TRUNCATION |= {"longest_first": True, "only_first": True}


class TokenizedText(dict):
    """`input_ids` and `attention_mask`, as items or as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def to(self, device: Any) -> TokenizedText:
        """The same with its PyTorch tensors on `device`."""
        return TokenizedText({name: value.to(device) for name, value in self.items()})


class CLIPTokenizer(StoredTokenizer):
    """Text to token ids and back, the same ids as transformers' `CLIPTokenizer` (5.23).

    Nothing in it changes while texts are encoded, so threads may share one.
    """

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        padding: bool | str = False,
        max_length: int | None = None,
        truncation: bool | str | None = None,
        return_tensors: str | None = None,
        add_special_tokens: bool = True,
    ) -> TokenizedText:
        """Encode one text or several.

        Args:
            text: a text gives a list of ids (a batch of one with `return_tensors`), several a list
                of lists.
            padding: `"max_length"`, `"longest"` (or True), or False.
            max_length: `model_max_length` if not given; given alone it also truncates.
            truncation: cut what is longer than `max_length`; the end token is kept.
            return_tensors: None for lists, `"np"` or `"pt"` for int64 `(batch, tokens)`.
            add_special_tokens: put the start and the end token around the text.
        Raises:
            InputError, InputTypeError: an argument as above is something else.
        """
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, (list, tuple)) or not all(isinstance(t, str) for t in texts):
            raise InputTypeError(f"text must be a string or a list of strings, not {text!r:.80}")
        if not texts:
            raise InputError("text is an empty list; at least one text is needed")
        if truncation is None:
            truncation = max_length is not None and padding is False
        elif truncation not in _TRUNCATION:
            raise InputError(
                f"truncation={truncation!r}; allowed: {', '.join(map(repr, _TRUNCATION))}"
            )
        limit = self._limit(max_length)
        edges = ([self.bos_token_id], [self.eos_token_id]) if add_special_tokens else ([], [])
        room = limit - len(edges[0]) - len(edges[1])
        if room < 0:
            raise InputError(f"max_length={limit} has no room for the start and the end token")

        rows = []
        for one in texts:
            ids = self._encode(one).ids
            rows.append([*edges[0], *(ids[:room] if _TRUNCATION[truncation] else ids), *edges[1]])
        found = self._padded(rows, [[1] * len(row) for row in rows], padding, limit, return_tensors)
        if return_tensors is None and isinstance(text, str):
            return TokenizedText({name: listed[0] for name, listed in found.items()})
        return found

    def _limit(self, max_length: int | None) -> int:
        if max_length is None:
            return self.model_max_length
        return checks.whole("max_length", max_length, 0, KNOWN_LENGTH)

    def _padded(
        self,
        rows: list[list[int]],
        masks: list[list[int]],
        padding: bool | str,
        limit: int,
        return_tensors: str | None,
    ) -> TokenizedText:
        """Rows and masks, filled up to the longest or to `limit`."""
        checks.choice("padding", padding, tuple(_PADDING))
        checks.choice("return_tensors", return_tensors, (None, "np", "pt"))
        longest = max(map(len, rows))
        # Nobody knows the longest there may be: as transformers, no further than here.
        limit = limit if limit <= KNOWN_LENGTH else longest
        length = {None: 0, "longest": longest, "max_length": limit}[_PADDING[padding]]
        masks = [mask + [0] * (length - len(mask)) for mask in masks]
        rows = [row + [self.pad_token_id] * (length - len(row)) for row in rows]
        if return_tensors is None:
            return TokenizedText(input_ids=rows, attention_mask=masks)
        if len({len(row) for row in rows}) > 1:
            raise InputError(
                "texts of different length do not make one tensor: pass padding='max_length' and"
                f" truncation=True (lengths: {sorted({len(row) for row in rows})})"
            )
        make = np.asarray if return_tensors == "np" else backends.get("torch").array
        return TokenizedText(
            input_ids=make(np.array(rows, np.int64)), attention_mask=make(np.array(masks, np.int64))
        )

    def _encode(self, text: str) -> Any:
        try:
            return self.backend_tokenizer.encode(text, add_special_tokens=False)
        except (UnicodeEncodeError, TypeError) as error:  # half a surrogate pair is not text
            raise InputError(f"text is not valid unicode: {text!r:.80}") from error

    @property
    def bos_token_id(self) -> int:
        return self.backend_tokenizer.token_to_id(self.bos_token)

    @property
    def eos_token_id(self) -> int:
        return self.backend_tokenizer.token_to_id(self.eos_token)

    @property
    def unk_token_id(self) -> int:
        return self.backend_tokenizer.token_to_id(self.unk_token)

    @property
    def pad_token_id(self) -> int:
        return self.backend_tokenizer.token_to_id(self.pad_token)
