"""Where the vocabulary of a one-file checkpoint is, since none holds its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from underdraw.errors import NotFoundError
from underdraw.weights import folders, hub

CLIP = "openai/clip-vit-large-patch14"
CLIP_TOKENS = 49408


@dataclass(frozen=True)
class Tokenizer:
    """Where the vocabulary is, and how its prompts end."""

    repository: str | None = CLIP
    """A folder or Hub id; None where nobody published one of this size."""
    pad_token: str = "<|endoftext|>"
    tokens: int | None = None
    """How many the text encoder knows."""


def tokenizer_of(family: str, text: Mapping[str, Any] | None) -> Tokenizer:
    """What a text encoder with this config needs; without one, what is usual in the family."""
    pad_token = "!" if family == "sd2" else "<|endoftext|>"
    tokens = None if text is None else text.get("vocab_size")
    if text is None or tokens == CLIP_TOKENS:
        return Tokenizer(CLIP, pad_token, tokens)
    shape = (tokens, text.get("hidden_size"))
    return Tokenizer(hub.SCENES if shape == _scenes() else None, pad_token, tokens)


def _scenes() -> tuple[Any, Any]:
    try:
        config = folders.read_config(hub.scenes_folder(), "text_encoder")
    except NotFoundError:  # left out of this installation
        return None, None
    return config.get("vocab_size"), config.get("hidden_size")
