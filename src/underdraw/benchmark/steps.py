"""One guided step of a UNet as the loop makes it, without a loop."""

from __future__ import annotations

from typing import Any

from underdraw.controls.run import Conditioning, Run
from underdraw.engines.eager import EAGER
from underdraw.engines.engine import Engine
from underdraw.sampling.denoiser import Denoiser

TIME, GUIDANCE = 500.0, 7.5
"""Of the step that is measured."""


class OneCall:
    """What the UNet of a run needs of a solver: the times of its calls, here of one."""

    def __len__(self) -> int:
        return 1

    def timestep(self, index: int) -> float:
        return TIME


def run_of(model: Any, context: Any, latents: Any = None, engine: Engine = EAGER) -> Run:
    """A guided run on a context `(2 * images, tokens, width)`, unconditional rows first."""
    half = context.shape[0] // 2
    halves = Conditioning(context[half:], context[:half])
    return Run(model.nn, model, OneCall(), halves, GUIDANCE, engine=engine, latents=latents)


def stepper(model: Any, context: Any, engine: Engine = EAGER) -> Denoiser:
    """A guided step as the loop makes it: `stepper(latents (images, 4, h, w), 0)`. Keys and values
    of the context and what the blocks make of the time are computed by the first call of it."""
    return Denoiser(run_of(model, context, engine=engine))
