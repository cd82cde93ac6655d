"""Controls that tell what they do at a call as data, whatever the latents are.

The loop may then ask them for many calls before the first one, and have an engine run these as one
compiled program (`sampling.windows`). What they tell is made of hooks that are data themselves:
frozen dataclasses with arrays and numbers as fields.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from underdraw.backends.contract import Array, Operations
from underdraw.controls.control import Asked, Call, Control
from underdraw.networks.program import Program
from underdraw.networks.sites import NO_SITES, Sites

LatentChange = Callable[[Operations, Array], Array]
"""`(nn, latents) -> latents`, as data."""


class Steady(Control):
    """A control that carries nothing from call to call and looks at no latents; override what it
    tells of a call instead of the moments.

    `guides` may say by the call and the carry whether there is an unconditional half.

    Under an engine that compiles whole loops, what differs from call to call has to be arrays and
    floats; where other fields differ, another program is compiled from that call on.
    """

    def steady(self) -> bool:
        """False where a subclass has moments of its own: these are asked call by call."""
        kind = type(self)
        return (
            kind.before_call is Steady.before_call
            and kind.during_call in (Control.during_call, Asking.during_call)
            and kind.predict is Control.predict
            and kind.after_step is Steady.after_step
            and not kind.reuses
        )

    def before(self, carry: Any, call: Call) -> Sequence[LatentChange]:
        """What happens to the latents from which a call starts. Rare: each ends a compiled loop."""
        return ()

    def sites_at(self, nn: Operations, carry: Any, like: Array, call: Call) -> Sites:
        """What acts inside a call; of the latents `like` only shape and place may be used."""
        return NO_SITES

    def after(self, carry: Any, call: Call) -> Sequence[LatentChange]:
        """What happens to the latents behind a call."""
        return ()

    def before_call(
        self, nn: Operations, carry: Any, latents: Array, call: Call
    ) -> tuple[Array, Sites, Any]:
        """What it tells of a call, done."""
        for change in self.before(carry, call):
            latents = change(nn, latents)
        return latents, self.sites_at(nn, carry, latents, call), carry

    def after_step(
        self, nn: Operations, carry: Any, latents: Array, call: Call
    ) -> tuple[Array, Any]:
        """What it tells of a call, done."""
        for change in self.after(carry, call):
            latents = change(nn, latents)
        return latents, carry


class Need(NamedTuple):
    """What a network of a control's own makes of times and texts ahead (`control.Ahead`)."""

    model: Any
    times: Program
    context: Program
    rows: int
    """Of the call, all or the conditional half."""
    like: Array


class Asks(Protocol):
    """A network beside the UNet that is asked in a call, as data."""

    def need(self, rows: int) -> Need:
        """What it is told of times and texts in a call of so many rows."""
        ...

    def __call__(self, nn: Operations, asked: Asked) -> Sites:
        """What acts inside the call."""
        ...


class Asking(Steady):
    """A steady control that asks a network of its own in each call."""

    def asks(self, carry: Any, like: Array, call: Call) -> Sequence[Asks]:
        """The networks to ask; of the latents `like` only shape and place may be used."""
        return ()

    def active(self, carry: Any, like: Array, call: Call) -> Any:
        """How many it asks."""
        return len(self.asks(carry, like, call))

    def during_call(
        self, nn: Operations, carry: Any, asked: Asked, call: Call
    ) -> tuple[Sites, Any]:
        """What they answer."""
        sites = NO_SITES
        for one in self.asks(carry, asked.sample, call):
            sites = sites + one(nn, asked)
        return sites, carry
