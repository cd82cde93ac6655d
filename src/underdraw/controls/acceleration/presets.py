"""All ways to compute less of a pipeline, and the usual mixtures of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

from underdraw.checks import shown
from underdraw.controls.acceleration.attention import AttentionCache
from underdraw.controls.acceleration.features import DeepCache, EncoderPropagation
from underdraw.controls.acceleration.guidance import (
    AdaptiveGuidance,
    GuidanceInterval,
    SparseGuidance,
)
from underdraw.controls.acceleration.method import Method
from underdraw.controls.acceleration.tokens import TokenDownsampling
from underdraw.controls.control import Control
from underdraw.errors import InputError, InputTypeError
from underdraw.schema import Schema, hints_of

TOGETHER = (
    ("deep_cache", "encoder_propagation"),
    ("guidance_interval", "adaptive_guidance", "sparse_guidance"),
    ("attention_cache", "sparse_guidance"),
)
"""Fields of which one alone can be set."""


@dataclass(frozen=True)
class Acceleration(Schema):
    """Which ways to compute less act in calls; None is not at all."""

    owner = "acceleration"
    closed = True

    deep_cache: DeepCache | None = None
    encoder_propagation: EncoderPropagation | None = None
    attention_cache: AttentionCache | None = None
    guidance_interval: GuidanceInterval | None = None
    adaptive_guidance: AdaptiveGuidance | None = None
    sparse_guidance: SparseGuidance | None = None
    token_downsampling: TokenDownsampling | None = None

    def check(self) -> None:
        for names in TOGETHER:
            found = [name for name in names if getattr(self, name) is not None]
            if len(found) > 1:
                raise InputError(
                    f"acceleration: {' and '.join(found)} do not go together; allowed: one of them"
                )

    @property
    def methods(self) -> tuple[Method, ...]:
        """Those that act."""
        found = (getattr(self, each.name) for each in fields(self))
        return tuple(method for method in found if method is not None)

    def controls(self) -> list[Control]:
        """What acts in a run."""
        return [method.control() for method in self.methods]

    def recorded(self) -> dict[str, Any]:
        """As records hold it, without what is not there."""
        return {name: value for name, value in asdict(self).items() if value is not None}


PRESETS: Mapping[str, Acceleration | None] = {
    "exact": None,
    "fast": Acceleration(DeepCache(every=2)),
    "faster": Acceleration(DeepCache(every=3)),
}
"""What gave most for its price (docs/acceleration.md)."""
KINDS = {get_args(hint)[0]: name for name, hint in hints_of(Acceleration).items()}
"""Field of each method."""


def mixed(methods: Sequence[str | Method]) -> Acceleration | None:
    """A preset by its name, or some methods together.

    Raises:
        InputError: there is no such preset, or methods do not go together.
        InputTypeError: something is no method.
    """
    if len(methods) == 1 and isinstance(methods[0], str):
        if methods[0] not in PRESETS:
            raise InputError(
                f"methods={shown(methods[0])}; allowed: {', '.join(map(repr, PRESETS))}"
            )
        return PRESETS[methods[0]]
    chosen: dict[str, Any] = {}
    for method in methods:
        name = KINDS.get(type(method))
        if name is None:
            raise InputTypeError(
                f"methods holds {shown(method)}; allowed: {', '.join(k.__name__ for k in KINDS)}, "
                "or the name of a preset alone"
            )
        if name in chosen:
            raise InputError(f"methods holds two {type(method).__name__}; allowed: one")
        chosen[name] = method
    if not chosen:
        raise InputError("methods: none is given; allowed: a preset, or methods")
    return Acceleration(**chosen)
