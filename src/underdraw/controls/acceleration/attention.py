"""Attention to the text, which settles early in a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from underdraw.backends.contract import Array, Operations
from underdraw.controls.acceleration.method import Method, check_reuse
from underdraw.controls.control import Call, Control
from underdraw.controls.planned import Planned
from underdraw.controls.run import Run, of_rows
from underdraw.networks import unet
from underdraw.networks.sites import NO_SITES, Sites, Telling
from underdraw.schema import Range

TO_TEXT = ".attn2.to_q"


@dataclass(frozen=True)
class AttentionCache(Method):
    """Behind some call cross-attention gives what it gave then, the mean of both halves, and
    guidance is over (Zhang et al. 2024, "Cross-attention makes inference cumbersome", T-GATE).

    Args:
        after: the part of the run up to that call and with it, in [0, 1): at 0.4 the first 10 of 25
            calls are whole ones, as with the authors' `gate_step` of 10. The first call always is.

    Raises:
        InputError: it is no such number.
    """

    owner = "AttentionCache"
    reuses = True

    after: Annotated[float, Range(0, below=1)] = 0.4

    def control(self) -> Control:
        return _Attended(self)


class _Kept(NamedTuple):
    """What goes from call to call."""

    places: tuple[str, ...]
    """Of all attentions to the text."""
    values: Mapping[str, Array]


@dataclass(frozen=True)
class _Attended(Control):
    method: AttentionCache

    def _last(self, call: Call) -> int:
        """The call of this run whose attention is kept."""
        whole = math.ceil(round(self.method.after * call.count, 6))  # 0.28 of 25 is 7.000000000001
        return max(whole, 1) - 1

    def check(self, planned: Planned) -> None:
        check_reuse(self.method, planned)

    def prepare(self, run: Run) -> _Kept:
        paths = unet.layout(run.model.config).leaves
        places = tuple(p.removesuffix(".to_q") for p in paths if p.endswith(TO_TEXT))
        return _Kept(places, {})

    def guides(self, carry: _Kept, call: Call) -> bool:
        return call.index <= self._last(call)

    def before_call(
        self, nn: Operations, carry: _Kept, latents: Array, call: Call
    ) -> tuple[Array, Sites, _Kept]:
        if call.index < self._last(call):
            return latents, NO_SITES, carry
        # A call that is computed in part tells a part of it; the rest comes with the next one.
        missing = tuple(place for place in carry.places if place not in carry.values)
        known = {place: of_rows(value, latents.shape[0]) for place, value in carry.values.items()}
        telling = (Telling(missing),) if missing else ()
        return latents, Sites(cross_attention_output=telling, attended=known), carry

    def after_step(
        self, nn: Operations, carry: _Kept, latents: Array, call: Call
    ) -> tuple[Array, Any]:
        values = dict(carry.values)
        for extra in call.extras:
            half = extra.value.shape[0] // 2
            both = extra.value[:half] + extra.value[half:] if call.guided else extra.value
            values[extra.place] = both / 2 if call.guided else both
        return latents, carry._replace(values=values)
