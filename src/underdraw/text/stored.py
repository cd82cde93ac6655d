"""What a tokenizer holds, and the files it is kept in."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from underdraw import checks
from underdraw.arguments import checked, text
from underdraw.errors import InputError, InputTypeError, WeightError
from underdraw.schema import shown, within
from underdraw.text import tokens, vocabulary
from underdraw.weights import hub

HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")

_NAMED = set(vocabulary.SPECIAL)
_NEEDED = ("bos_token", "eos_token", "unk_token", "pad_token")


class StoredTokenizer:
    """All of a tokenizer but the call that encodes texts, which is `CLIPTokenizer`'s.

    Args:
        vocab: token -> id, or the path of a `vocab.json`.
        merges: pairs in order of rank, or the path of a `merges.txt`.
        bos_token, eos_token, unk_token, pad_token, ...: special tokens: text, a dict from a config
            file, or `tokenizers.AddedToken`. SD 1 pads with `<|endoftext|>`, SD 2 with `!`.
        model_max_length: longest sequence of the text encoder, special tokens included.
        added_tokens: id -> token beyond the vocabulary, as `added_tokens_decoder` in config files.
        extra_special_tokens: further special tokens.
    """

    __call__: Callable[..., Any]
    _encode: Callable[[str], Any]
    _padded: Callable[..., Any]
    _limit: Callable[[int | None], int]

    def __init__(
        self,
        vocab: Mapping[str, int] | str | os.PathLike[str],
        merges: Iterable[Any] | str | os.PathLike[str],
        *,
        bos_token: Any = vocabulary.START,
        eos_token: Any = vocabulary.END,
        unk_token: Any = vocabulary.END,
        pad_token: Any = vocabulary.END,
        sep_token: Any = None,
        cls_token: Any = None,
        mask_token: Any = None,
        model_max_length: int = 77,
        added_tokens: Mapping[int, Any] | None = None,
        extra_special_tokens: Sequence[Any] = (),
    ):
        named = dict(
            zip(
                vocabulary.SPECIAL,
                (bos_token, eos_token, unk_token, sep_token, pad_token, cls_token, mask_token),
                strict=True,
            )
        )
        named = {
            key: token if isinstance(token, str) else vocabulary.as_added(token)
            for key, given in named.items()
            if given is not None or key in _NEEDED
            for token in (tokens.as_token(key, given),)
        }
        texts = {key: _text(token) for key, token in named.items()}
        self.bos_token, self.eos_token = texts["bos_token"], texts["eos_token"]
        self.unk_token, self.pad_token = texts["unk_token"], texts["pad_token"]
        self.model_max_length = tokens.as_max_length(model_max_length)
        self.backend_tokenizer = vocabulary.backend(
            vocabulary.read_vocab(vocab), vocabulary.read_merges(merges), self.unk_token
        )
        checked = tokens.as_added("added_tokens", added_tokens)
        added = {index: vocabulary.as_added(token) for index, token in sorted(checked.items())}
        extra = tokens.as_tokens("extra_special_tokens", extra_special_tokens)
        extra = [t if isinstance(t, str) else vocabulary.as_added(t) for t in extra]
        every = list(added.values())
        if len(added) + len(extra) > vocabulary.MOST_ADDED:
            raise WeightError(f"over {vocabulary.MOST_ADDED:,} tokens are added to the vocabulary")
        present, seen = {token.content for token in every}, set()
        for token in [*named.values(), *extra]:
            key = token if isinstance(token, str) else repr(token)  # the same text may come twice
            if _text(token) not in present and key not in seen:
                seen.add(key)
                every.append(token)
        specials = set(texts.values())
        self.backend_tokenizer.add_tokens([_special(token, specials) for token in every])
        for index, token in added.items():
            if (got := self.backend_tokenizer.token_to_id(token.content)) != index:
                raise WeightError(f"added token {token.content!r} has id {index}, but got {got}")
        self._config = {**texts, "model_max_length": self.model_max_length}
        self._extra = [_text(token) for token in extra]

    @classmethod
    @checked
    def from_pretrained(
        cls, name: str | os.PathLike[str], *, subfolder: str | None = None, **options: Any
    ) -> Any:
        """Load from a folder or a Hub id.

        Args:
            name: a folder, or `owner/name` on the Hub.
            subfolder: where in it, often `"tokenizer"`.
            options: arguments of the constructor that replace what the files say; `revision`,
                `token`, `cache_dir`, `local_files_only`, `force_download` go to the Hub.
        Raises:
            NotFoundError, WeightError: nothing of that name, or its files are not a tokenizer's.
        """
        where = {key: options.pop(key) for key in HUB_OPTIONS if key in options}
        place = hub.resolve(name, subfolder=subfolder or "", weights=False, **where)
        folder = Path(place, subfolder or "")
        arguments = {**vocabulary.read_folder(folder), **options}
        with within(folder):
            return cls(**arguments)

    @checked
    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the files that this class and transformers 4 and 5 read."""
        changed = {key: getattr(self, key) for key in ("bos_token", "eos_token", "pad_token")}
        changed["model_max_length"] = self.model_max_length
        vocabulary.write_folder(folder, self.backend_tokenizer, {**self._config, **changed})

    @checked
    def encode(self, text: str, **options: Any) -> list[int]:
        """Ids of one text; `options` as for a call."""
        return self(text, **options).input_ids

    @checked
    def pad(
        self,
        encoded_inputs: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        *,
        return_tensors: str | None = None,
    ) -> Any:
        """Make rows of ids equally long.

        Args:
            encoded_inputs: `{"input_ids": rows}`, perhaps with their "attention_mask"; or a list of
                such with one row each.
            padding: to the longest row (True), or to `"max_length"`: `max_length`, or
                `model_max_length` if not given.
            return_tensors: as for a call.

        Raises:
            InputError, InputTypeError: an argument as above is something else.
        """
        if isinstance(encoded_inputs, (list, tuple)) and encoded_inputs:
            names = encoded_inputs[0]
            if not all(isinstance(one, Mapping) and {*one} == {*names} for one in encoded_inputs):
                raise InputTypeError(
                    f"encoded_inputs={shown(encoded_inputs)} are not mappings with the same names"
                )
            encoded_inputs = {name: [one[name] for one in encoded_inputs] for name in names}
        if not isinstance(encoded_inputs, Mapping) or "input_ids" not in encoded_inputs:
            raise InputTypeError(f"encoded_inputs={shown(encoded_inputs)} has no input_ids")
        rows = [_listed(row) for row in encoded_inputs["input_ids"]]
        if not rows:
            raise InputError("encoded_inputs holds no rows; at least one is needed")
        masks = [_listed(row) for row in encoded_inputs.get("attention_mask", ())]
        masks = masks or [[1] * len(row) for row in rows]
        return self._padded(rows, masks, padding, self._limit(max_length), return_tensors)

    @checked
    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text as they stand in the vocabulary, without start and end."""
        return self._encode(text).tokens

    @checked
    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> Any:
        """Text of ids (a list, an array, one id); a list of texts for several rows of ids."""
        ids = tokens.as_ids("token_ids", token_ids)
        if isinstance(ids, int):
            ids = [ids]
        if ids and not isinstance(ids[0], int):
            return [self.decode(row, skip_special_tokens) for row in ids]
        words = self.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        return words.replace("</w>", " ").strip()

    batch_decode = decode

    @checked
    def add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        """Append tokens that texts may contain; how many were new."""
        if not isinstance(new_tokens, (list, tuple)):
            new_tokens = [new_tokens]
        for token in new_tokens:
            if not isinstance(getattr(token, "content", token), str):
                raise InputTypeError(f"new_tokens holds {shown(token)}, which is no token")
            text("new_tokens", getattr(token, "content", token))
        add = self.backend_tokenizer
        return (add.add_special_tokens if special_tokens else add.add_tokens)(list(new_tokens))

    @checked
    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Id of a token, or ids of several; the unknown token's for one that is not there."""
        if not isinstance(tokens, str):
            listed = checks.listed("tokens", tokens, "tokens")
            if not all(isinstance(token, str) for token in listed):
                raise InputTypeError(f"tokens={shown(tokens)} are not all strings")
            return [self.convert_tokens_to_ids(token) for token in listed]
        text("tokens", tokens)
        found = self.backend_tokenizer.token_to_id(tokens)
        return self.backend_tokenizer.token_to_id(self.unk_token) if found is None else found

    @checked
    def convert_ids_to_tokens(self, ids: Any) -> Any:
        """Token of an id, or tokens of several."""
        read = tokens.as_ids("ids", ids)
        if isinstance(read, int):
            return self.backend_tokenizer.id_to_token(read)
        if any(isinstance(index, list) for index in read):
            raise InputError(f"ids={shown(ids)} has several rows; give one")
        return [self.backend_tokenizer.id_to_token(index) for index in read]

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Text of each special token there is, by name, such as "bos_token"."""
        changed = {key: getattr(self, key) for key in ("bos_token", "eos_token", "pad_token")}
        return {key: text for key, text in {**self._config, **changed}.items() if key in _NAMED}

    @property
    def all_special_tokens(self) -> list[str]:
        """Texts of all special tokens, each once."""
        return list(dict.fromkeys([*self.special_tokens_map.values(), *self._extra]))

    @property
    def all_special_ids(self) -> list[int]:
        """Their ids."""
        return [self.convert_tokens_to_ids(token) for token in self.all_special_tokens]

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """Id -> `tokenizers.AddedToken` of the tokens that are found whole in texts."""
        return dict(sorted(self.backend_tokenizer.get_added_tokens_decoder().items()))

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """Text -> id of the same."""
        return {token.content: index for index, token in self.added_tokens_decoder.items()}

    def get_vocab(self) -> dict[str, int]:
        """Token -> id, added tokens included."""
        return self.backend_tokenizer.get_vocab(with_added_tokens=True)

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=True)

    def __bool__(self) -> bool:
        return True

    @property
    def vocab_size(self) -> int:
        """Number of tokens without the added ones."""
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=False)


def _text(token: Any) -> str:
    return token if isinstance(token, str) else token.content


def _special(token: Any, specials: set[str]) -> Any:
    """`token` as an `AddedToken`, marked special if it is one."""
    if isinstance(token, str):
        return vocabulary.as_added(token, special=True)
    if token.content in specials and not token.special:
        token.special = True
    return token


def _listed(row: Any) -> list[int]:
    return row.tolist() if hasattr(row, "tolist") else list(row)
