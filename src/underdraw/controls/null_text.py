"""`NullText`: another unconditional context at each call, as inversions of pictures find them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm

from underdraw import checks
from underdraw.backends.contract import Array, Operations
from underdraw.controls.control import Call, Planned
from underdraw.controls.steady import Steady
from underdraw.errors import InputError, InputTypeError
from underdraw.networks.sites import NO_SITES, Sites


@dataclass(frozen=True, eq=False)
class NullText(Steady):
    """Guided calls steer away from these contexts instead of the negative prompt.

    Args:
        contexts: one `(1 or images, tokens, width)` for each call, or a single one for all. Runs of
            fewer calls take the last ones, as image-to-image begins part-way.

    Raises (when the call begins, before anything is computed):
        InputError, InputTypeError: no contexts, too few of them, or for another number of images.
    """

    contexts: Sequence[Array]

    def __post_init__(self) -> None:
        if not isinstance(self.contexts, list | tuple):
            raise InputTypeError(f"contexts is {type(self.contexts).__name__}; a list is needed")
        if not self.contexts:
            raise InputError("contexts is empty; one for each call is needed, or one for all")
        for context in self.contexts:
            if getattr(context, "ndim", 0) != 3:
                raise InputTypeError(
                    f"contexts holds {checks.shown(context)}; an array (1 or images, tokens, "
                    "width) is needed"
                )

    def check(self, planned: Planned) -> None:
        """That there is a context for each call, and for each image."""
        if 1 < len(self.contexts) < planned.calls:
            raise InputError(
                f"contexts has {len(self.contexts)} entries; the run has {planned.calls} calls"
            )
        width = planned.model.config.cross_attention_dim
        for context in self.contexts:
            shape = tuple(getattr(context, "shape", ()))
            if len(shape) != 3 or shape[0] not in (1, planned.images):
                raise InputError(
                    f"contexts holds an array of shape {shape}; needed is (1 or {planned.images}, "
                    "tokens, width)"
                )
            checks.array("contexts", context, (None, None, width), planned.framework)

    def sites_at(self, nn: Operations, carry: None, like: Array, call: Call) -> Sites:
        if not call.guided:
            return NO_SITES
        number = 0 if len(self.contexts) == 1 else call.index - call.count
        return Sites(context=(Unconditional(self.contexts[number]),))


@dataclass(frozen=True, eq=False)
class Unconditional:
    """The hook `context`: another first half of a guided context. The shorter of the two is
    repeated, which attention to it does not notice."""

    negative: Array
    """`(1 or images, tokens, width)`"""

    def __call__(self, nn: Operations, context: Array) -> Array:
        half = context.shape[0] // 2
        conditional = context[half:]
        negative = nn.expand(self.negative, (half, *self.negative.shape[1:]))
        negative = nn.cast(negative, context)
        tokens = lcm(negative.shape[1], conditional.shape[1])
        parts = (negative, conditional)
        return nn.concat([nn.concat((x,) * (tokens // x.shape[1]), 1) for x in parts], 0)
