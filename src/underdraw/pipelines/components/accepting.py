"""What can be a component of a pipeline."""

from __future__ import annotations

from typing import Any

from underdraw import schedulers
from underdraw.errors import InputError, InputTypeError, UnderdrawError
from underdraw.pipelines.components.registry import (
    MODELS,
    READERS,
    SCHEDULERS,
    SEVERAL,
    model_class,
    uncompiled,
)
from underdraw.schedulers.foreign import METHODS as SCHEDULER_METHODS


def accepted(name: str, value: Any) -> Any:
    """A component that is not None; a network of another library is adopted.

    Raises:
        InputTypeError: it cannot be that component.
        WeightError: its parameters are not those of this network.
    """
    if name in SEVERAL:
        several = value if isinstance(value, list | tuple) else _held(value)
        if isinstance(value, SEVERAL[name]):
            return value
        if several is not None:
            one = [accepted(name, each) for each in several]
            return one[0] if len(one) == 1 else SEVERAL[name](one)
    kind = model_class(name, type(uncompiled(value)).__name__) if name in MODELS else None
    if kind is not None and not isinstance(uncompiled(value), (kind, MODELS[name])):
        try:
            return kind.adopt(value)
        except UnderdrawError as error:
            raise type(error)(f"{name}: {error}") from error
    if name in SCHEDULERS and not isinstance(value, schedulers.Scheduler):
        missing = [method for method in SCHEDULER_METHODS if not hasattr(value, method)]
        if missing:
            raise InputTypeError(
                f"{name}={type(value).__name__} has no {', '.join(missing)}; allowed: an "
                "underdraw scheduler, or one with the same methods"
            )
    if name in READERS and not callable(value):
        raise InputTypeError(f"{name}={type(value).__name__} cannot be called")
    return value


def _held(value: Any) -> list[Any] | None:
    """The networks of what holds several in diffusers; None for anything else."""
    if not type(value).__name__.startswith("Multi"):
        return None
    held = getattr(value, "nets", None) or getattr(value, "adapters", None)
    return None if held is None else list(held)


def check_widths(text_encoder: Any, unet: Any) -> None:
    """Raise an InputError unless the UNet takes tokens of the width which the tower gives."""
    if text_encoder is None or unet is None:
        return
    width, context = text_encoder.config.hidden_size, unet.config.cross_attention_dim
    if width != context:
        raise InputError(
            f"text_encoder gives tokens of width {width}, the UNet takes {context}; "
            "they belong to different models"
        )
