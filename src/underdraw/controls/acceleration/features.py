"""Features of the UNet that change slowly, computed in some calls of a run and kept for others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from underdraw.backends.contract import Array, Operations
from underdraw.controls.acceleration.method import Method, check_reuse
from underdraw.controls.control import Call, Control
from underdraw.controls.planned import Planned
from underdraw.controls.run import Run, of_rows
from underdraw.errors import InputError
from underdraw.networks import decoder, encoder
from underdraw.networks.config import UNetConfig
from underdraw.networks.sites import Sites, Telling
from underdraw.schema import Range


@dataclass(frozen=True)
class DeepCache(Method):
    """Deep features are computed in every n-th call; the others compute the outermost layers, and
    take what the deep ones gave last (Ma et al. 2024, sections 3.2 and 3.3), or what follows from
    the last two of them. ControlNets are asked where deep features are computed.

    Args:
        every: so many calls share deep features, 2 to 1000.
        branch: the skip connection at which the other calls turn round, 0 is the outermost: they
            compute the first convolution, `branch` layers of the way down behind it, and
            `branch + 1` of the way up. `cache_branch_id` of the authors' helper.
        first: so many calls at the beginning compute everything.
        order: 0 keeps deep features as they were, 1 goes on along the straight line through the
            last two that were computed (Liu et al. 2025, "From reusing to forecasting", TaylorSeer
            of order 1), which costs nothing; `first=3` with it, for the first calls are on no line.

    Raises:
        InputError: a number is out of its range.
    """

    owner = "DeepCache"
    reuses = True

    every: Annotated[int, Range(2, 1000)] = 3
    branch: Annotated[int, Range(0, 1000)] = 0
    first: Annotated[int, Range(1, 1000)] = 1
    order: Annotated[int, Range(0, 1)] = 0

    def control(self) -> Control:
        return _Reused(self, _from_branch, self.order)


@dataclass(frozen=True)
class EncoderPropagation(Method):
    """The way down and the middle of the UNet are computed in every n-th call; the others run the
    way up alone, on what its skip connections held last (Li et al. 2024, "Faster Diffusion",
    section 3.2). ControlNets and T2I-Adapters are in what is held, so they are not asked either.

    Args:
        every: so many calls share what the way down gave, 2 to 1000.
        first: so many calls at the beginning compute everything, for there the way down changes
            most.

    Raises:
        InputError: a number is out of its range.
    """

    owner = "EncoderPropagation"
    reuses = True

    every: Annotated[int, Range(2, 1000)] = 3
    first: Annotated[int, Range(1, 1000)] = 3

    def control(self) -> Control:
        return _Reused(self, _from_middle)


Places = tuple[tuple[str, ...], tuple[str, ...]]
"""Where hidden states of the way up are kept, and which skip connections."""


def _from_branch(method: Any, config: UNetConfig) -> Places:
    """Hidden states alone, before the outermost layers of the way up."""
    units = decoder.units(config)
    most = len(units) - 1
    if method.branch > most:
        raise InputError(
            f"DeepCache: branch={method.branch} is not supported; allowed for this UNet: 0 .. "
            f"{most}"
        )
    return (units[-(method.branch + 1)].place,), ()


def _from_middle(method: Any, config: UNetConfig) -> Places:
    """All that the way up gets."""
    return (decoder.units(config)[0].place,), encoder.skip_places(config)


class _Told(NamedTuple):
    """What a whole call gave."""

    index: int
    values: Mapping[str, Array]

    @property
    def rows(self) -> int:
        """Images in it, both halves counted. A half that was not computed is known to nobody."""
        return min((value.shape[0] for value in self.values.values()), default=0)


NOTHING = _Told(0, {})


class _Kept(NamedTuple):
    """What goes from call to call."""

    telling: Sites
    """What a whole call is told to hand out."""
    last: _Told = NOTHING
    before: _Told = NOTHING

    def at(self, index: int, rows: int, order: int) -> Mapping[str, Array]:
        """Features of a call by those of the last whole ones."""
        last, before = self.last, self.before
        values = {place: of_rows(value, rows) for place, value in last.values.items()}
        if not order or before.rows < rows:
            return values
        ahead = (index - last.index) / (last.index - before.index)
        older = {place: of_rows(value, rows) for place, value in before.values.items()}
        return {place: x + (x - older[place]) * ahead for place, x in values.items()}


@dataclass(frozen=True)
class _Reused(Control):
    """Whole calls tell what others take."""

    method: DeepCache | EncoderPropagation
    places: Callable[[Any, UNetConfig], Places]
    order: int = 0
    reuses = True  # without a type, or it would be a field

    def check(self, planned: Planned) -> None:
        check_reuse(self.method, planned)
        self.places(self.method, planned.model.config)

    def prepare(self, run: Run) -> _Kept:
        up, skip = self.places(self.method, run.model.config)
        return _Kept(Sites(up=(Telling(up),), skip=(Telling(skip),) if skip else ()))

    def before_call(
        self, nn: Operations, carry: _Kept, latents: Array, call: Call
    ) -> tuple[Array, Sites, _Kept]:
        rows = latents.shape[0] * (2 if call.guided else 1)
        due = call.whole or call.index < self.method.first or call.index % self.method.every == 0
        if due or carry.last.rows < rows:
            return latents, carry.telling, carry if self.order else carry._replace(last=NOTHING)
        return latents, Sites(features=carry.at(call.index, rows, self.order)), carry

    def after_step(
        self, nn: Operations, carry: _Kept, latents: Array, call: Call
    ) -> tuple[Array, Any]:
        if not call.extras:
            return latents, carry
        told = _Told(call.index, {extra.place: extra.value for extra in call.extras})
        # Where a control begins or ends to act features jump, and no line goes through them.
        straight = self.order and not call.whole
        return latents, carry._replace(last=told, before=carry.last if straight else NOTHING)
