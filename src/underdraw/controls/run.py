"""A run: what is fixed for one call of a pipeline, as controls and the loop see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from underdraw.backends.contract import Array, Operations
from underdraw.backends.deltas import Deltas
from underdraw.controls.planned import Planned
from underdraw.engines.eager import EAGER
from underdraw.engines.engine import Engine, Question
from underdraw.networks.program import Program
from underdraw.networks.sites import NO_SITES, Sites


@dataclass(frozen=True)
class Conditioning:
    """What texts tell a run. Images of one prompt stand next to each other."""

    context: Array
    """`(images, tokens, width)`"""
    negative: Array | None = None
    """The unconditional half of the same shape; None where nothing is guided."""
    ids: tuple[np.ndarray, ...] | None = None
    """Of each prompt the windows of tokens that it became, int64 `(windows, tokens)`; those below 0
    are what controls put in. None where prompts were given as embeddings."""

    def joined(self, nn: Operations) -> Array:
        """Both halves, unconditional rows first, as the UNet takes them."""
        if self.negative is None:
            return self.context
        return nn.concat((self.negative, self.context), 0)


@dataclass(eq=False)
class Run:
    """One run of a solver. All of it is fixed but `guidance` and `interrupted`, which callbacks may
    change between two model calls."""

    nn: Operations
    """Of the UNet's backend, with the settings of the pipeline."""
    model: Any
    """The UNet."""
    solver: Any
    """`solvers.solver.Solver`: `solver.noised(index, clean, noise)` are latents as they are at a
    call, of index `calls` those after the last one."""
    conditioning: Conditioning
    guidance: Any = 1.0
    """A number, or an array `(images, 1, 1, 1)`. Guidance is on as long as it exceeds 1 and there
    is an unconditional half."""
    rescale: float = 0.0
    """How far guided predictions get back the standard deviation of the conditional ones (Lin et
    al. 2023, section 3.4)."""
    prompts: Sequence[str] | None = None
    """Texts of the call, where it has any."""
    draw: Callable[[], Array] | None = None
    """Fresh standard normal noise of the shape of `latents`, from the generators of the call."""
    components: Any = None
    """The pipeline's `controls.components.Components`; None in a loop without a pipeline."""
    engine: Engine = EAGER
    latents: Any = None
    """The latents the run begins with, `(batch, channels, height, width)`, float32."""
    encode: Callable[[Callable[[Any], Any]], Array] | None = None
    """The context of the prompts, encoded anew: what it is given tells of each control of the call
    which one acts on words instead, None for none. None where there are no prompts."""
    checked: bool = False
    """Whether the controls were asked (`Control.check`) before its texts were encoded."""
    leaves: Deltas = field(default_factory=dict)
    """Differences that lie over the UNet in all calls of the run, by the paths of its layers: the
    pipeline's active LoRAs."""
    sites: Sites = NO_SITES
    """What acts in all calls of the run besides, because the pipeline's settings say so."""
    watched: bool = True
    """Whether somebody wants to see each call; else several may be made at once."""
    interrupted: bool = False
    """Set by callbacks: the run ends after the current step, unless they take it back."""
    ended: bool = False
    """Set from outside, by other threads, too: the run ends after the current step."""

    @property
    def batch(self) -> int:
        """Images of this run. Under guidance the UNet sees twice as many rows."""
        if self.latents is not None:
            return self.latents.shape[0]
        return self.conditioning.context.shape[0]

    @property
    def calls(self) -> int:
        """Model calls from begin to end."""
        return len(self.solver)

    @property
    def planned(self) -> Planned:
        """What was fixed of it before it began."""
        conditioning = self.conditioning
        return Planned(
            self.nn,
            self.model,
            self.solver,
            tuple(self.latents.shape),
            conditioning.negative is not None,
            self.prompts,
            conditioning.ids,
            conditioning.context.shape[1] if conditioning.ids is None else None,
            self.components,
        )

    @property
    def framework(self) -> Any:
        """The backend's arrays (`backends.framework.Framework`)."""
        return self.model._framework

    @property
    def distilled(self) -> bool:
        """Whether the UNet takes the guidance scale as an input instead of a second call (LCM)."""
        return self.model.config.time_cond_proj_dim is not None

    def ask(self, program: Program, model: Any, *inputs: Any) -> Any:
        """Have the engine run a program, of the UNet or of a control's own network."""
        if self.components is not None:
            return self.components.ask(program, model, *inputs)
        return self.engine.run(Question(program, model, inputs, self.nn))


def of_rows(value: Array, rows: int) -> Any:
    """The last rows: of a guided call the conditional half, for a call that has no other."""
    return value if value.shape[0] <= rows else value[value.shape[0] - rows :]
