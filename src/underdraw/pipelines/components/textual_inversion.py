"""Textual inversions: words that a pipeline has learned beside its tokenizer's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from underdraw import checks
from underdraw.arguments import checked
from underdraw.errors import InputError, InputTypeError
from underdraw.models.keywords import drop_neutral
from underdraw.pipelines.components.lora_mix import NEUTRAL
from underdraw.pipelines.components.registry import uncompiled
from underdraw.weights.locate import find_in
from underdraw.weights.lora.reading import as_checkpoint
from underdraw.weights.textual_inversion import read_inversions

ARGUMENT = "pretrained_model_name_or_path"
FILES = ("learned_embeds.safetensors", "learned_embeds.bin")
"""Names that the file of a folder has where nobody says."""


class Wordy:
    """The methods of pipelines about learned words, under diffusers' names."""

    parts: Any
    """`Components`"""

    @checked
    def load_textual_inversion(
        self,
        pretrained_model_name_or_path: Any,
        token: str | Sequence[str] | None = None,
        tokenizer: Any = None,
        text_encoder: Any = None,
        *,
        weight_name: str | None = None,
        subfolder: str | None = None,
        **hub: Any,
    ) -> None:
        """Let prompts, negative ones, too, use words that were learned; tokenizer and text encoder
        stay as they are. A word of several vectors is written once and takes as many places.

        Args:
            pretrained_model_name_or_path: a file (`.safetensors`, or a pickle of which no code is
                run) of diffusers, A1111 or kohya, with one word or several; a folder or Hub id with
                such a file; a state dict or an array of vectors; or a list of these.
            token: the word, where the file names none or another is wanted; one for each of a list.
                Prompts may write it in large or small letters.
            tokenizer, text_encoder: diffusers'; None, or the pipeline's own.
            weight_name, subfolder: the file in a folder or repository.
            hub: as of `load_lora_weights`.

        Raises:
            NotFoundError: there is no such file.
            WeightError: it holds something else, or vectors for another text encoder.
            InputError, InputTypeError: an argument cannot work, or a word is there already.
        """
        parts = self.parts
        for name, given in (("tokenizer", tokenizer), ("text_encoder", text_encoder)):
            if given is not None and given is not parts.named.get(name):
                raise InputError(
                    f"{name} is another than the pipeline's; allowed: None, or its own"
                )
        if parts.text_encoder is None or parts.tokenizer is None:
            raise InputError("the pipeline has no text encoder or tokenizer to learn words")
        several = isinstance(pretrained_model_name_or_path, list | tuple)
        sources = pretrained_model_name_or_path if several else [pretrained_model_name_or_path]
        tokens = list(token) if isinstance(token, list | tuple) else [token] * len(sources)
        if len(tokens) != len(sources):
            raise InputError(f"token has {len(tokens)} entries; there are {len(sources)} sources")
        access = {"weight_name": weight_name, "subfolder": subfolder or ""}
        found: dict[str, np.ndarray] = {}
        for source, word in zip(sources, tokens, strict=True):
            if word is not None and (not isinstance(word, str) or not word.strip()):
                raise InputTypeError(f"token={checks.shown(word)} is not a word")
            for name, vectors in _read(parts, source, word, access, hub).items():
                self._require_new(name, found)
                found[name] = vectors
        parts.learned = {**parts.learned, **found}

    @checked
    def unload_textual_inversion(
        self,
        tokens: str | Sequence[str] | None = None,
        tokenizer: Any = None,
        text_encoder: Any = None,
    ) -> None:
        """Forget learned words, all of them if none are named.

        Raises:
            InputError: one of them is not there.
        """
        there = self.parts.learned
        self._require_own(tokenizer=tokenizer, text_encoder=text_encoder)
        if tokens is None:
            self.parts.learned = {}
            return
        gone = [tokens] if isinstance(tokens, str) else tokens
        for word in checks.sequence("tokens", gone, "learned words"):
            if not checks.is_one_of(word, tuple(there)):
                listed = ", ".join(f"{name!r:.60}" for name in list(there)[:9]) or "none"
                raise InputError(f"tokens has {checks.shown(word)}; learned words: {listed}")
        kept = {word: vectors for word, vectors in there.items() if word not in gone}
        self.parts.learned = kept

    @checked
    def maybe_convert_prompt(self, prompt: Any, tokenizer: Any = None) -> Any:
        """The prompt as it is: a word of several vectors is written once here."""
        checks.texts("prompt", prompt)
        self._require_own(tokenizer=tokenizer)
        return prompt

    def _require_own(self, **given: Any) -> None:
        """Arguments of diffusers that name the pipeline's own parts, or nothing."""
        for name, value in given.items():
            if value is not None and value is not self.parts.named.get(name):
                raise InputError(
                    f"{name}={checks.shown(value)} is not the pipeline's; allowed: None, or its own"
                )

    def _require_new(self, word: str, also: Mapping[str, Any]) -> None:
        known = {other.lower() for other in (*self.parts.learned, *also)}
        if word.lower() in known:
            raise InputError(f"token={word!r:.80} is a learned word already; unload it before")


def _read(
    components: Any,
    source: Any,
    word: str | None,
    access: Mapping[str, Any],
    hub: Mapping[str, Any],
) -> dict[str, np.ndarray]:
    width = uncompiled(components.text_encoder).config.hidden_size
    if isinstance(source, Mapping) or (hasattr(source, "shape") and hasattr(source, "dtype")):
        held = as_checkpoint(
            _flat(source) if isinstance(source, Mapping) else {"": source}, ARGUMENT
        )
        return read_inversions(held, width, word, where=ARGUMENT)
    checks.path(ARGUMENT, source)
    where = {**access, **drop_neutral("load_textual_inversion", hub, NEUTRAL)}
    return read_inversions(find_in(source, FILES, **where), width, word)


def _flat(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict without what lies deeper; A1111's keeps the vectors one level down."""
    inner = tensors.get("string_to_param")
    if isinstance(inner, Mapping):
        return {f"string_to_param.{key}": value for key, value in inner.items()}
    return dict(tensors)
