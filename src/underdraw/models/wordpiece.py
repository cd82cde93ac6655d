"""BERT's tokenizer, which the Q-Former reads the category of a subject with, on the `tokenizers`
library. It needs one file: BERT's vocabulary, `vocab.txt`, or `tokenizer.json`, which holds it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from underdraw import checks
from underdraw.errors import InputError, NotFoundError, WeightError
from underdraw.formats import json_text, opening
from underdraw.formats.writing import write_file
from underdraw.models.keywords import drop_neutral
from underdraw.schema import shown
from underdraw.weights import hub as hubs

FILE, WHOLE = "vocab.txt", "tokenizer.json"
UNKNOWN, FIRST, LAST, PADDING = "[UNK]", "[CLS]", "[SEP]", "[PAD]"
BEGIN = "[DEC]"
"""BLIP-2 adds it behind BERT's vocabulary, for texts that it writes; the one token more that its
embeddings have."""
MOST_TOKENS = 2**20
PUBLISHED = "bert-base-uncased"
"""The repository on the Hub whose vocabulary published weights were trained with."""


class WordPiece:
    """Texts to BERT's token ids, in small letters and without accents, as transformers'
    `BertTokenizer` makes them of `bert-base-uncased`.

    Args:
        vocab: tokens in the order of their ids, or ids by token.

    Raises:
        WeightError: it is no such vocabulary.
    """

    def __init__(self, vocab: Sequence[str] | Mapping[str, int]) -> None:
        known = _numbered(vocab)
        known.setdefault(BEGIN, len(known))
        self.vocab: dict[str, int] = known
        self._backend = _backend(known)

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | os.PathLike[str], *, subfolder: str | None = None, **hub: Any
    ) -> WordPiece:
        """From `vocab.txt`, from a folder with it or with `tokenizer.json`, or from a Hub id.

        Raises:
            NotFoundError: there is neither file.
            WeightError: a file holds something else.
        """
        hub = drop_neutral("WordPiece.from_pretrained", hub)
        path = Path(name_or_path)
        if not opening.is_regular(path):
            place = hubs.resolve(name_or_path, subfolder=subfolder or "", weights=False, **hub)
            path = Path(place, subfolder or "")
            there = [path / name for name in (FILE, WHOLE) if opening.is_regular(path / name)]
            if not there:
                raise NotFoundError(f"{path} holds neither {FILE} nor {WHOLE}")
            path = there[0]
        try:
            return cls(_from_whole(path) if path.suffix == ".json" else _from_lines(path))
        except WeightError as error:
            told = str(error)
            raise WeightError(told if told.startswith(str(path)) else f"{path}: {told}") from None

    @classmethod
    def inside(cls, *folders: str | os.PathLike[str]) -> WordPiece | None:
        """That of the first of these folders which has one; None where none has."""
        for folder in folders:
            if any(opening.is_regular(Path(folder, name)) for name in (FILE, WHOLE)):
                return cls.from_pretrained(folder)
        return None

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `vocab.txt`; what else the folder holds stays."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        tokens = sorted(self.vocab, key=self.vocab.__getitem__)
        # Readers add it by themselves.
        tokens = tokens[:-1] if tokens[-1] == BEGIN else tokens
        write_file(Path(folder, FILE), ("\n".join(tokens) + "\n").encode())

    def __len__(self) -> int:
        return len(self.vocab)

    def __repr__(self) -> str:
        return f"WordPiece({len(self):,} tokens)"

    def __reduce__(self) -> Any:
        """For copies and pickles: the library's object is made anew."""
        return type(self), (self.vocab,)

    def __call__(
        self, texts: str | Sequence[str], most: int = 512, name: str = "text_input"
    ) -> tuple[np.ndarray, Any]:
        """Ids with [CLS] and [SEP] around each text, int64 `(texts, words)`, filled up with [PAD]
        to the longest, and float32 that is 1 for tokens and 0 for padding; `name` is that of the
        argument, for errors.

        Raises:
            InputError, InputTypeError: no texts, or one of more than `most` tokens.
        """
        rows = [self._backend.encode(text).ids for text in checks.texts(name, texts)]
        for text, row in zip([texts] if isinstance(texts, str) else texts, rows, strict=True):
            if len(row) > most:
                raise InputError(
                    f"{name}={text!r:.60} has {len(row) - 2} tokens; allowed: at most {most - 2}"
                )
        longest = max(map(len, rows))
        ids = np.full((len(rows), longest), self.vocab[PADDING], np.int64)
        keep = np.zeros((len(rows), longest), np.float32)
        for i, row in enumerate(rows):
            ids[i, : len(row)], keep[i, : len(row)] = row, 1
        return ids, keep


def _numbered(vocab: Any) -> dict[str, int]:
    """Ids by token, checked."""
    listed = vocab if isinstance(vocab, Mapping) else None
    if listed is None:
        if isinstance(vocab, str) or not isinstance(vocab, Sequence):
            raise WeightError(f"a vocabulary is a list of tokens; this is {shown(vocab)}")
        listed = {}
        for i, token in enumerate(vocab):
            if token in listed:
                raise WeightError(f"{token!r:.60} stands twice in the vocabulary")
            listed[token] = i
    if len(listed) > MOST_TOKENS:
        raise WeightError(f"the vocabulary has over {MOST_TOKENS:,} tokens")
    known = dict(listed)
    for token, index in known.items():
        if not isinstance(token, str) or type(index) is not int:
            raise WeightError(f"the vocabulary holds {shown(token)}: {shown(index)}; no such token")
    if sorted(known.values()) != list(range(len(known))):
        raise WeightError("the ids of the vocabulary are not 0, 1, 2, ...")
    if lacking := [one for one in (PADDING, UNKNOWN, FIRST, LAST) if one not in known]:
        raise WeightError(f"the vocabulary has no {', '.join(lacking)}, so it is not BERT's")
    return known


def _from_lines(path: Path) -> list[str]:
    lines = opening.read_text(path).split("\n")
    return [line.rstrip("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]


def _from_whole(path: Path) -> dict[str, int]:
    """Ids by token of a `tokenizer.json`, tokens that were added to it included."""
    content = json_text.read_object(path)
    model = content.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise WeightError(f"{path} holds no WordPiece vocabulary, so it is not BERT's")
    if model.get("type") not in (None, "WordPiece"):
        raise WeightError(f"{path} holds a {model['type']!r:.30} vocabulary; BERT's is 'WordPiece'")
    known = dict(model["vocab"])
    added = content.get("added_tokens")
    for token in added if isinstance(added, list) else ():
        if isinstance(token, dict) and isinstance(token.get("content"), str):
            known.setdefault(token["content"], token.get("id"))
    return known


def _backend(vocab: Mapping[str, int]) -> Any:
    """A `tokenizers.Tokenizer` with BERT's rules."""
    from tokenizers import (
        AddedToken,
        Tokenizer,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )

    made = Tokenizer(models.WordPiece(dict(vocab), unk_token=UNKNOWN, max_input_chars_per_word=100))
    made.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=True, lowercase=True
    )
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing((LAST, vocab[LAST]), (FIRST, vocab[FIRST]))
    special = [
        token for token in (PADDING, UNKNOWN, FIRST, LAST, "[MASK]", BEGIN) if token in vocab
    ]
    made.add_special_tokens([AddedToken(token, special=True) for token in special])
    return made
