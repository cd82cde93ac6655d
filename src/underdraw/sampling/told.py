"""What the controls of a run do at its calls, asked before these are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from underdraw.backends.contract import Array
from underdraw.backends.tree import Structure, alike, flatten, is_array, no_data, signature
from underdraw.controls.control import Call, Control, kept
from underdraw.controls.run import Run
from underdraw.controls.steady import Asking, Steady
from underdraw.networks.sites import NO_SITES, Sites
from underdraw.sampling.whole import Acts

LOOK = 64
"""Calls whose controls are asked ahead."""
SMALL = 1024
"""Numbers of an array that is taken for one of each call, as scales of images are."""


@dataclass(frozen=True, eq=False)
class Moment:
    """A call, as controls have told of it."""

    guided: bool
    before: tuple[Any, ...]
    leaves: tuple[tuple[Any, ...], ...]
    """By control, of its `Acts` without differences to layers."""
    structure: Structure
    """Of all of them; its children are theirs."""
    shapes: tuple[Any, ...]
    sites: Sites
    """All that act."""


@dataclass(eq=False)
class Told:
    """Asks controls what they do at calls, each once."""

    run: Run
    acting: Sequence[Control]
    carries: Sequence[Any]
    like: Array
    guided: bool = False
    _known: dict[int, Moment] = field(default_factory=dict)
    _differing: dict[tuple[int, Structure], list[bool]] = field(default_factory=dict)

    def begin(self, index: int, guided: bool) -> None:
        """What was before this call is of no use any more."""
        if guided != self.guided:
            self.forget()
        self.guided = guided
        self._known = {i: moment for i, moment in self._known.items() if i >= index}

    def forget(self) -> None:
        """Something has changed that controls may be told of."""
        self._known = {}

    def at(self, index: int) -> Moment:
        """What happens at a call."""
        if index not in self._known:
            with self.run.framework.no_grad():
                self._known[index] = self._asked(index)
        return self._known[index]

    def odd(self, index: int) -> bool:
        """Whether something that acts in a call is no data, but a function that may change."""
        moment = self.at(index)
        leaves = flatten(moment.sites.leaves)[1]
        return no_data(moment.structure) is not None or no_data(leaves) is not None

    def row(self, first: int) -> list[Moment]:
        """Calls from this one on that can be in one loop, as far as anybody looks ahead."""
        stop = min(self.run.calls, first + LOOK)
        end = next((i for i in range(first + 1, stop) if not self._alike(first, i)), stop)
        return [self.at(i) for i in range(first, end)]

    def differing(self, first: int) -> list[bool]:
        """Which leaves of a call may be others at other calls.

        Numbers always may. Of arrays a control tells by those of its other calls, whatever further
        controls do meanwhile; and what differs once in a run does so to its end. So no other
        program is needed where there are more or fewer such calls.
        """
        found, moment = list[bool](), self.at(first)
        for number, structure in enumerate(moment.structure.children):
            rows = [
                one.leaves[number]
                for one in map(self.at, range(first, min(self.run.calls, first + LOOK)))
                if one.structure.children[number] == structure
            ]
            known = self._differing.setdefault((number, structure), [False] * len(rows[0]))
            for i, values in enumerate(zip(*rows, strict=True)):
                known[i] = known[i] or _may_differ(values)
            found += known
        return found

    def _alike(self, first: int, other: int) -> bool:
        """Whether two calls can be in one loop, the first one at its beginning."""
        a, b = self.at(first), self.at(other)
        return (
            not b.before
            and a.guided == b.guided
            and a.structure == b.structure
            and a.shapes == b.shapes
            and alike(a.sites.leaves, b.sites.leaves)
        )

    def _asked(self, index: int) -> Moment:
        run, nn = self.run, self.run.nn
        call = Call(index, run.calls, run.solver.timestep(index), self.guided)
        both = zip(self.acting, self.carries, strict=True)
        if self.guided and not all(control.guides(carry, call) for control, carry in both):
            call = replace(call, guided=False)
        before, each = list[Any](), list[Acts]()
        total = NO_SITES
        for control, carry in zip(self.acting, self.carries, strict=True):
            assert isinstance(control, Steady)
            before += control.before(carry, call)
            sites = control.sites_at(nn, carry, self.like, call)
            kept(nn, control, "before_call", (self.like, sites, carry), 3, self.like)
            asks = control.asks(carry, self.like, call) if isinstance(control, Asking) else ()
            after = control.after(carry, call)
            total = total + sites if sites is not NO_SITES else total
            each.append(Acts(replace(sites, leaves={}), tuple(asks), tuple(after)))
        parts = [flatten(acts) for acts in each]
        leaves = tuple(tuple(found) for found, _ in parts)
        structure = Structure(tuple, (), tuple(one for _, one in parts))
        shapes = tuple(signature(found) for found, _ in parts)
        return Moment(call.guided, tuple(before), leaves, structure, shapes, total)


def _may_differ(values: Sequence[Any]) -> bool:
    """Whether a leaf of so many calls is another one at each, or might be."""
    first = values[0]
    small = is_array(first) and int(np.prod(first.shape)) <= SMALL
    return small or isinstance(first, float) or any(value is not first for value in values)
