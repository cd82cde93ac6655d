"""What code written for the peer reads from a pipeline; answers to what is done otherwise here."""

from __future__ import annotations

from typing import Any

from underdraw.errors import InputError


def refuse(image: Any, embeds: Any, attention: Any) -> None:
    """Arguments of the peer's call whose work controls do here; empty ones pass."""
    given = {
        "ip_adapter_image": image,
        "ip_adapter_image_embeds": embeds,
        "cross_attention_kwargs": attention or None,
    }
    for name, value in given.items():
        if value is not None:
            raise InputError(
                f"{name}={value!r:.100} is not taken; allowed: None. What acts on attention is "
                "given as controls=[...]"
            )


def no_texts(pipe: Any, prompts: Any) -> InputError:
    """The error of a call that has to encode a text in a pipeline which cannot."""
    lacking = [name for name in ("text_encoder", "tokenizer") if getattr(pipe, name) is None]
    what = "prompt" if prompts is not None else "negative_prompt (an empty one if none is given)"
    return InputError(
        f"{' and '.join(lacking)}=None, so {what} cannot be encoded; give prompt_embeds, and "
        "negative_prompt_embeds or guidance_scale=1"
    )
