"""Grounding weights at work in a run: what was computed before it, and what acts in each call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from underdraw.backends.contract import Array, Operations
from underdraw.controls.control import Call, Run
from underdraw.controls.strength import Strength
from underdraw.errors import InputError
from underdraw.networks.gligen.grounding import Constants, Tokens
from underdraw.networks.sites import NO_SITES, Sites


@dataclass(frozen=True)
class Ready:
    """What a run carries: nothing in it changes between calls."""

    network: Any
    """The attached `Grounding`."""
    constants: Constants
    """Of all rows of a guided call, the unconditional ones first."""
    strengths: Sequence[Strength]
    """One for all images, or one per image."""
    extra: Array | None = None
    """Input channels of the same rows, for maps."""

    @classmethod
    def of(
        cls,
        run: Run,
        network: Any,
        tokens: Tokens,
        strengths: Sequence[Strength],
        extra: Array | None = None,
    ) -> Ready:
        """Let the layers read tokens whose rows are one for all images, or one per image, and last
        the unconditional one; `extra` has no such last row."""
        nn, constants = run.nn, network.constants(tokens, run.ask)

        def each(x: Array) -> Array:
            return nn.expand(x, (run.batch, *x.shape[1:]))

        def rows(x: Array) -> Array:
            return nn.concat((each(x[-1:]), each(x[:-1])), 0)

        keys = {at: (rows(k), rows(v)) for at, (k, v) in constants.keys.items()}
        if extra is not None:
            extra = nn.concat((each(extra), each(extra)), 0)
        return cls(network, replace(constants, keys=keys), strengths, extra)

    def sites(self, nn: Operations, call: Call, images: int) -> Sites:
        """What acts in a call; nothing where the strength of all images is 0."""
        strengths = [strength.at(call) for strength in self.strengths]
        if not any(strengths):
            return NO_SITES
        constants, extra = self.constants, self.extra
        if not call.guided:
            constants = constants.rows(images, 2 * images)
            extra = None if extra is None else extra[images:]
        strength: Any = strengths[0]
        if len(set(strengths)) > 1:
            rows = np.array(strengths * (2 if call.guided else 1), np.float32)[:, None, None]
            framework = self.network._framework
            strength = framework.array(rows, device=self.network.device)
        return self.network.sites(constants, strength, extra)


def attached_network(components: Any, what: str, *kinds: str) -> Any:
    """The first of the attached grounding weights of some kinds.

    Raises:
        InputError: there are none; `what` says what would need them.
    """
    if components is None:
        raise InputError(f"{what} act in a pipeline alone, to which grounding weights are attached")
    there = components.groundings
    for kind in kinds:
        if kind in there:
            return there[kind]
    raise InputError(
        f"{what} need grounding weights of kind {kinds[0]!r}; attached: "
        f"{', '.join(map(repr, there)) or 'none'}. Attach some with pipe.load_grounding(path)"
    )
